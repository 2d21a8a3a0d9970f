"""Models to measure with: random weights in nnU-Net's own folders, and entries that only sleep."""

import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured_process import run_measured
from benchmarks.plans import CT_INTENSITY, make_dataset, make_plans
from ctseg import train
from ctseg.model_spec import Channel, IntensityProperties, Label, ModelSpec, SplineResampling, Tensor
from ctseg.train.architectures import swin_architecture, unet_architecture

SPACING_MM = (3.27, 1.3, 1.3)
"""What the networks work at, (z, y, x): a little coarser than the scans, so that both ways are resampled."""
TRAINERS = {"U-Net": "nnUNetTrainer", "Swin UNETR": "nnUNetTrainerSwinUNETR"}
_SLEEPER = Path(__file__).parent / "sleeping_model.py"
_RECORDER = Path(__file__).parent / "recording_model.py"


@dataclass(frozen=True)
class Network:
    """A network to measure with.

    Attributes:
        kind: ``U-Net`` or ``Swin UNETR``.
        classes: With the background.
        patch_size: (z, y, x).
        number: Of its data set.
    """

    kind: str
    classes: int
    patch_size: tuple[int, int, int]
    number: int

    @property
    def name(self) -> str:
        """Of the model in the repository."""
        return f"{'unet' if self.kind == 'U-Net' else 'swin'}{self.classes}"

    @property
    def dataset(self) -> str:
        """Name of nnU-Net's data set."""
        return f"Dataset{self.number}_{self.name}"

    @property
    def trainer(self) -> str:
        """Name of nnU-Net's trainer."""
        return TRAINERS[self.kind]

    @property
    def plans(self) -> dict[str, Any]:
        """``plans.json``."""
        swin = self.kind == "Swin UNETR"
        return make_plans(
            name=self.dataset,
            patch_size=self.patch_size,
            spacing=SPACING_MM,
            original_spacing=SPACING_MM,
            median_shape=(60, 120, 120),
            architecture=swin_architecture(3) if swin else unet_architecture(3, features=(8, 16, 32, 64)),
        )

    @property
    def dataset_json(self) -> dict[str, Any]:
        """``dataset.json``."""
        return make_dataset({"background": 0, **{f"label{i}": i for i in range(1, self.classes)}})


def nnunet_environment(root: Path) -> dict[str, str]:
    """Return the environment in which nnU-Net's commands find the models under ``root``."""
    return {
        "nnUNet_raw": str(root / "nnUNet_raw"),
        "nnUNet_preprocessed": str(root / "nnUNet_preprocessed"),
        "nnUNet_results": str(root / "nnUNet_results"),
        "nnUNet_extTrainer": str(Path(train.__file__).parent / "trainers"),
    }


def trained_folder(root: Path, network: Network) -> Path:
    """Return where nnU-Net's commands look for a network."""
    return root / "nnUNet_results" / network.dataset / f"{network.trainer}__nnUNetPlans__3d_fullres"


def write_trained_folder(root: Path, network: Network) -> None:
    """Write random weights as nnU-Net's trainer leaves them. Needs torch; call it in a child process."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from ctseg.train.trainers.nnUNetTrainerSwinUNETR import nnUNetTrainerSwinUNETR

    folder = trained_folder(root, network)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    manager = PlansManager(network.plans)
    trainer = nnUNetTrainerSwinUNETR if network.kind == "Swin UNETR" else nnUNetTrainer
    torch.manual_seed(network.number)
    module = trainer.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, network.classes, False
    )
    (folder / "plans.json").write_text(json.dumps(network.plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(network.dataset_json), encoding="utf-8")
    checkpoint = {
        "network_weights": module.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": 0.5,
        "current_epoch": 1,
        "init_args": {
            "plans": network.plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": network.dataset_json,
        },
        "trainer_name": network.trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def serve_network(root: Path, network: Network, scan: Path, *, timeout_s: float | None) -> None:
    """Export and build a trained folder by ctseg's own commands, proven with a scan.

    Raises:
        SetupError: A command failed.
    """
    bundle = root / "bundles" / network.name
    words: list[str | Path] = ["export", "-i", trained_folder(root, network), "-o", bundle, "--name", network.name]
    # random weights leave many near ties; what the labels are is compared below all the same
    words += ["--cases", scan, "--accept-unproven"]
    run_measured(ctseg_command(*words), environment=nnunet_environment(root), timeout_s=timeout_s)
    words = ["build", bundle, "--repository", root / "repository", "--backend", "python", "--accept-unproven"]
    run_measured(ctseg_command(*words), timeout_s=timeout_s)


def sleeper_name(like: str, sleep_ms: float) -> str:
    """Return the name of the model that :func:`write_sleeper` makes."""
    return f"{like}-sleep{sleep_ms:g}"


def write_sleeper(repository: Path, like: str, sleep_ms: float) -> str:
    """Write an entry that takes the same patches as another, and answers after a sleep.

    Args:
        repository: Model repository that has ``like``.
        like: Name of the model whose spec is taken.
        sleep_ms: Milliseconds a window.

    Returns:
        The new model's name.
    """
    from ctseg.serving.entries import read_entry

    newest = read_entry(repository / like).newest
    name = sleeper_name(like, sleep_ms)
    raw = newest.spec.model_dump(mode="json")
    publish_sleeper(repository, ModelSpec.validated({**raw, "name": name, "network_sha256": ""}, source=name), sleep_ms)
    return name


def publish_sleeper(repository: Path, spec: ModelSpec, sleep_ms: float) -> None:
    """Write an entry that answers each window after a sleep, and the one for its whole scans."""
    from ctseg.serving.publish import EntryDraft, publish
    from ctseg.serving.scan_entry import publish_scan_entry

    draft = EntryDraft(
        spec=spec,
        backend="python",
        model_file=_SLEEPER,  # stands where the network's file would
        parameters={"ctseg_sleep_ms": f"{sleep_ms:g}"},
        build_info={"benchmark": "sleeps"},
    )
    entry = publish(repository, draft, 1)
    (entry.newest.folder / "model.py").write_bytes(_SLEEPER.read_bytes())
    publish_scan_entry(repository, entry)


def window_spec(name: str, classes: int, patch_size: tuple[int, int, int]) -> ModelSpec:
    """Return the spec of a CT network of so many classes, at the spacing of all networks here."""
    intensity = IntensityProperties(
        **{key: CT_INTENSITY[key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")}
    )
    window_bytes = 4 * classes * math.prod(patch_size)
    return ModelSpec(
        name=name,
        configuration="3d_fullres",
        channels=(Channel(name="CT", normalization="CTNormalization", intensity=intensity),),
        reader="SimpleITKIO",
        file_ending=".nii.gz",
        transpose_forward=(0, 1, 2),
        spacing_mm=SPACING_MM,
        patch_size=patch_size,
        resampling_data=SplineResampling(order=3),
        resampling_logits=SplineResampling(order=1),
        labels=tuple(Label(name=f"label{i}" if i else "background", values=(i,)) for i in range(classes)),
        mirroring="none",
        output=Tensor(name="logits"),
        max_batch_size=max(1, min(4, (128 << 20) // window_bytes)),
    )


def write_recorder(repository: Path, like: str, log: Path) -> str:
    """Write an entry that runs another's network, and notes in ``log`` when it computes.

    Returns:
        The new model's name.
    """
    from ctseg.serving.entries import CONFIG_NAME, read_entry
    from ctseg.triton.configuration import config_from_text, spec_parameter, text_from_config

    newest = read_entry(repository / like).newest
    name = f"{like}-recorded"
    spec = ModelSpec.validated({**newest.spec.model_dump(mode="json"), "name": name}, source=name)
    folder = repository / name
    shutil.copytree(repository / like, folder)
    config = config_from_text((folder / CONFIG_NAME).read_text(encoding="utf-8"), source=name)
    config.name = name
    config.parameters[spec_parameter(newest.version)].string_value = spec.to_json()
    config.parameters["ctseg_trace"].string_value = str(log)
    (folder / CONFIG_NAME).write_text(text_from_config(config), encoding="utf-8")
    version = folder / str(newest.version)
    (version / "model.py").rename(version / "network.py")
    shutil.copyfile(_RECORDER, version / "model.py")
    return name


def ctseg_command(*words: str | Path) -> list[str | Path]:
    """Return a command line of ctseg under this Python."""
    return [sys.executable, "-m", "ctseg", *words]


def nnunet_program(name: str) -> Path:
    """Return where a command of nnU-Net is: beside this Python, else as the PATH has it."""
    beside = Path(sys.executable).parent / name
    return beside if os.access(beside, os.X_OK) else Path(name)
