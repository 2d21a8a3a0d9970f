"""A trained nnU-Net model with its networks: read from a results folder or a zip, nothing foreign executed.

``trust`` lifts what :mod:`ctseg.nnunet.checkpoint` and :mod:`ctseg.deploy.architecture` refuse, for models
whose origin is known.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.deploy.architecture import build_network
from ctseg.errors import CheckpointError
from ctseg.model_spec import KeepLargest, ModelSpec, Votes
from ctseg.nnunet.checkpoint import read_checkpoint
from ctseg.nnunet.folds import Fold
from ctseg.nnunet.plans import resolve_configuration, spec_from_plans
from ctseg.nnunet.results_folder import ANY_MODEL, Choice, opened_results, read_json, trained_folds
from ctseg.stages import stage

if TYPE_CHECKING:
    import torch


_WRAPPERS = ("_orig_mod.", "module.")
_LONGEST_NAME = 100
_TOOLS = ("ctseg", "nnunetv2", "batchgenerators", "torch", "dynamic-network-architectures", "onnx", "onnxslim")


@dataclass(frozen=True)
class LoadedModel:
    """A trained configuration with the networks of the chosen folds.

    Attributes:
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        configuration: Name of the configuration in the plans.
        trainer: Name of the nnU-Net trainer class.
        folds: The folds, as in the names of their folders.
        checkpoint: Name of the checkpoint file, such as ``checkpoint_final.pth``.
        mirror_axes: Axes of test-time mirroring, of the first fold as in nnU-Net; spatial, 0 first.
        networks: One network for each fold: evaluation mode, float32, on the CPU, no gradients.
        network_sha256: SHA-256 over all weights.
        postprocessing: Steps after the label decision.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: str
    trainer: str
    folds: tuple[str, ...]
    checkpoint: str
    mirror_axes: tuple[int, ...]
    networks: "tuple[torch.nn.Module, ...]"
    network_sha256: str
    postprocessing: tuple[KeepLargest, ...] = ()

    @property
    def dataset_name(self) -> str:
        """``DatasetXXX_Name``."""
        return str(self.plans["dataset_name"])

    @property
    def default_name(self) -> str:
        """A name for the model in a Triton repository: the data set's, in lower case, without its number.

        Letters lose their accents, and what Triton's names may not have becomes ``_``.
        """
        given = self.dataset_name.partition("_")[2].lower() or self.dataset_name.lower()
        plain = unicodedata.normalize("NFKD", given.replace("ß", "ss")).encode("ascii", "ignore").decode()
        return re.sub(r"[^a-z0-9_.-]+", "_", plain).strip("_.-")[:_LONGEST_NAME] or "model"

    @property
    def previous_stage(self) -> str | None:
        """Configuration of the first stage, where this is the second stage of a cascade."""
        return resolve_configuration(self.plans, self.configuration).get("previous_stage")

    def spec(
        self,
        *,
        name: str,
        mirroring: str,
        max_batch_size: int,
        first_stage: ModelSpec | None = None,
        votes: bool = False,
    ) -> ModelSpec:
        """Return the spec of the float32 network.

        Args:
            name: Name of the model in the Triton repository.
            mirroring: ``graph``, ``client`` or ``none``.
            max_batch_size: Most patches in one request.
            first_stage: Of the network whose labels the second stage of a cascade gets.
            votes: Whether the network says how its folds vote; one fold alone does not.

        Raises:
            SpecError: The plans ask for something that ctseg does not reproduce, or the first stage is missing.
        """
        folds = len(self.networks)
        return spec_from_plans(
            self.plans,
            self.dataset,
            self.configuration,
            name=name,
            mirror_axes=self.mirror_axes,
            mirroring=mirroring,
            first_stage=first_stage,
            max_batch_size=max_batch_size,
            network_sha256=self.network_sha256,
            postprocessing=self.postprocessing,
            votes=Votes(folds=folds) if votes and folds > 1 else None,
            provenance={
                "dataset": self.dataset_name,
                "trainer": self.trainer,
                "plans": str(self.plans.get("plans_name", "")),
                "folds": self.folds,
                "checkpoint": self.checkpoint,
                "tools": {package: version(package) for package in _TOOLS},
            },
        )


def load_trained_model(
    path: Path,
    choice: Choice = ANY_MODEL,
    *,
    folds: Sequence[Fold] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    postprocessing: tuple[KeepLargest, ...] = (),
    trust: bool = False,
) -> LoadedModel:
    """Read a trained model and rebuild its networks by nnU-Net's own code.

    Args:
        path: The folder ``trainer__plans__configuration``, a folder above it, or the zip that
            ``nnUNetv2_export_model_to_zip`` writes.
        choice: Which model, where ``path`` holds several.
        folds: Which folds; None takes every numbered fold that has the checkpoint, else ``fold_all``.
        checkpoint: Name of the checkpoint file in the folders of the folds.
        postprocessing: Steps that cross-validation found useful.
        trust: Load whatever the files ask for.

    Raises:
        CheckpointError: Nothing or too much was found, a file is missing or broken, weights do not
            fit the network, or the files ask for what only ``trust`` allows.
    """
    with opened_results(path, choice) as folder:
        plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
        for file, content, part in (("plans.json", plans, "configurations"), ("dataset.json", dataset, "labels")):
            if not isinstance(content.get(part), dict):
                raise CheckpointError(
                    f"{folder.name}/{file}: expected {part} by their names, found {str(content.get(part))[:100]}: take "
                    "the file that nnU-Net wrote when it trained the model"
                )
        names = trained_folds(folder, folds, checkpoint)
        contents = [
            # mapped: the optimizer's state, two thirds of the file, is never read
            read_checkpoint(
                folder / f"fold_{name}" / checkpoint, mapped=True, trust=trust, trust_setting="trust_checkpoint"
            )
            for name in names
        ]
        try:
            configuration = str(contents[0]["init_args"]["configuration"])
            trainer = str(contents[0]["trainer_name"])
            weights = [content["network_weights"] for content in contents]
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder}: {error} is missing in {checkpoint}; is this a checkpoint of nnU-Net v2?"
            ) from error
        networks = []
        with stage("networks are made", len(names), unit="folds") as making:
            for name, its_weights in zip(names, weights, strict=True):
                network = build_network(plans, dataset, configuration, trainer, model=folder.name, trust=trust)
                _load_weights(network, its_weights, source=f"{folder.name} fold_{name}")
                networks.append(network)
                making.advance()
        return LoadedModel(
            plans=plans,
            dataset=dataset,
            configuration=configuration,
            trainer=trainer,
            folds=names,
            checkpoint=checkpoint,
            mirror_axes=tuple(contents[0].get("inference_allowed_mirroring_axes") or ()),
            networks=tuple(networks),
            network_sha256=_digest_of(weights),
            postprocessing=postprocessing,
        )


def _load_weights(network: "torch.nn.Module", weights: Mapping[str, "torch.Tensor"], *, source: str) -> None:
    import torch

    try:
        network.load_state_dict(_without_wrappers(network, weights))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: the weights do not fit the network that the plans describe: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: weight {name} has NaN or infinite values: the training has diverged")
    network.float().eval().requires_grad_(False)
    for module in network.modules():
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = False  # type: ignore[assignment]  # trades memory for time in training only


def _without_wrappers(network: "torch.nn.Module", weights: Mapping[str, "torch.Tensor"]) -> "dict[str, torch.Tensor]":
    """Return weights without the names that ``torch.compile`` and distributed training put in front of all of them."""
    names = dict(weights)
    wanted = set(network.state_dict())
    while set(names) != wanted and (
        prefix := next((item for item in _WRAPPERS if names and all(name.startswith(item) for name in names)), None)
    ):
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _digest_of(weights: Sequence[Mapping[str, "torch.Tensor"]]) -> str:
    import torch

    digest = hashlib.sha256()
    for state in weights:
        for name in sorted(state):
            tensor = state[name].detach().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
