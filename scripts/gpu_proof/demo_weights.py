"""The demo's network as nnU-Net left it, put together again from the ONNX graph that is served.

The repository holds no checkpoint. An ONNX graph of nnU-Net's plain U-Net keeps the names of the weights, and the
spec says what the plans said of scans; so nnU-Net's own commands can run the very same network.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from onnx.numpy_helper import to_array

from benchmarks.models import trained_folder
from benchmarks.plans import make_dataset, make_plans
from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.serving.entries import read_entry
from ctseg.train.architectures import unet_architecture
from scripts.gpu_proof.bench import demo_network

PREFIX = "networks.0.decoder."
_STAGE = re.compile(r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.all_modules\.0\.weight")
_UNUSED = re.compile(r"decoder\.seg_layers\.\d+\.(weight|bias)")
"""Deep supervision's outputs but the last are not in the graph, and inference does not use them."""


def write_demo_folder(entry_folder: Path, root: Path) -> Path:
    """Write nnU-Net's folder of an entry whose network is a plain U-Net.

    Args:
        entry_folder: ``<repository>/<name>``.
        root: Of nnU-Net's folders.

    Returns:
        The trained model's folder.

    Raises:
        SpecError: The network is another one.
    """
    newest = read_entry(entry_folder).newest
    weights = {
        tensor.name.removeprefix(PREFIX): torch.from_numpy(np.array(to_array(tensor)))
        for tensor in onnx.load(newest.folder / "model.onnx").graph.initializer
        if tensor.name.startswith(PREFIX)
    }
    if not (stages := {match[1]: match for name in weights if (match := _STAGE.fullmatch(name))}):
        raise SpecError(f"{entry_folder}: its network is no plain U-Net of nnU-Net with one fold")
    network = demo_network(entry_folder)
    plans = _plans(newest.spec, weights, len(stages), network.dataset)
    labels = {label.name: label.values[0] for label in newest.spec.labels}
    dataset = make_dataset(labels)
    manager = PlansManager(plans)
    module = nnUNetTrainer.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, newest.spec.num_heads, True
    )
    state = module.state_dict()
    for name in state:
        inner = name.removeprefix("decoder.").replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        if inner in weights:  # nnU-Net's blocks have two names for each weight, the graph has one
            state[name] = weights[inner]
        elif not _UNUSED.fullmatch(name):
            raise SpecError(f"{entry_folder}: its graph has no weight {inner}, only {len(weights)} others")
    module.load_state_dict(state)
    return _write(trained_folder(root, network), module, plans, dataset, newest.spec)


def _plans(spec: ModelSpec, weights: dict[str, Any], stages: int, name: str) -> dict[str, Any]:
    features = [
        int(weights[f"encoder.stages.{stage}.0.convs.0.all_modules.0.weight"].shape[0]) for stage in range(stages)
    ]
    blocks = 1 + max(int(match[2]) for name in weights if (match := _STAGE.fullmatch(name)))
    data, logits = spec.resampling_data, spec.resampling_logits
    kwargs = {"order_z", "force_separate_z", "order"}
    plans = make_plans(
        name=name,
        patch_size=tuple(spec.patch_size),
        spacing=tuple(spec.spacing_mm),
        architecture=unet_architecture(3, features=features, blocks=blocks),
        normalization=tuple(channel.normalization for channel in spec.channels),
        resampling_data=(data.function, {"is_seg": False, **data.model_dump(include=kwargs)}),
        resampling_logits=(logits.function, {"is_seg": False, **logits.model_dump(include=kwargs)}),
        transpose_forward=(spec.transpose_forward[0], spec.transpose_forward[1], spec.transpose_forward[2]),
        reader=spec.reader,
    )
    for number, channel in enumerate(spec.channels):
        if channel.intensity is not None:
            known = plans["foreground_intensity_properties_per_channel"][str(number)]
            known.update(channel.intensity.model_dump())
    return plans


def _write(
    folder: Path, module: torch.nn.Module, plans: dict[str, Any], dataset: dict[str, Any], spec: ModelSpec
) -> Path:
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    checkpoint = {
        "network_weights": module.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": 0.5,
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": tuple(spec.mirror_axes),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder
