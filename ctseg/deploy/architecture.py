"""The network that plans and a trainer describe, built by nnU-Net's own code without running foreign code.

``plans.json`` names classes to import, and a trainer can build its network by its own code. A class is taken only
from the packages of :data:`NETWORK_PACKAGES`, and only if it is a ``torch.nn.Module``; a trainer from outside
nnU-Net and ctseg may not build the network.
"""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import CheckpointError, SpecError
from ctseg.nnunet.checkpoint import TRUST_HINT
from ctseg.nnunet.plans import resolve_configuration
from ctseg.nnunet.trainers import TRAINERS_FOLDER, TRAINERS_PACKAGE, network_builder, trainer_folders

if TYPE_CHECKING:
    import torch

NETWORK_PACKAGES = (
    "dynamic_network_architectures.architectures",
    "dynamic_network_architectures.building_blocks",
    "torch.nn",
    "monai.networks",
    "ctseg.train.swin_unetr",
)
"""Packages from which plans may name network, normalisation, activation and other layer classes."""

_CLASS_KEYWORDS = ("conv_op", "norm_op", "dropout_op", "nonlin")
_FIRST_FORM = (
    "trainer {trainer} was written for nnU-Net 2.0 to 2.2, which gave dataset_json to build_network_architecture; "
    "rewrite it for (plans_manager, configuration_manager, num_input_channels, num_output_channels, "
    "enable_deep_supervision): "
)


def build_network(
    plans: dict[str, Any], dataset: dict[str, Any], configuration: str, trainer: str, *, model: str, trust: bool
) -> "torch.nn.Module":
    """Build a network with random weights as nnU-Net's predictor does, by the trainer's own method.

    Args:
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        configuration: Which of the plans' configurations.
        trainer: Name of the trainer class.
        model: Name of the trained model, for messages.
        trust: Build whatever the plans and the trainer ask for.

    Raises:
        CheckpointError: nnU-Net cannot build it, or it takes foreign code that only ``trust`` allows.
        SpecError: The plans have no such configuration.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        resolve_configuration(plans, configuration)
    except SpecError as error:
        raise SpecError(f"{model}: {error}") from error
    asked: Mapping[str, object] = {}
    try:
        manager = PlansManager(plans)
        resolved = manager.get_configuration(configuration)
        if not trust:
            _check_architecture(resolved.configuration["architecture"], model=model)
        build = _trainer_class(trainer, model=model, trust=trust).build_network_architecture
        asked = inspect.signature(build).parameters
        channels = determine_num_input_channels(manager, resolved, dataset)
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        described: tuple[Any, ...] = (manager, resolved)
        if "plans_manager" not in asked:  # trainers written for nnU-Net 2.3 to 2.6
            described = (
                resolved.network_arch_class_name,
                resolved.network_arch_init_kwargs,
                resolved.network_arch_init_kwargs_req_import,
            )
        network: torch.nn.Module = build(*described, channels, heads, enable_deep_supervision=False)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ImportError, AssertionError) as error:
        raise CheckpointError(
            f"{model}: nnU-Net cannot build the network of configuration {configuration}: "
            f"{_FIRST_FORM.format(trainer=trainer) if 'dataset_json' in asked else ''}{type(error).__name__}: {error}"
        ) from error
    return network


def _check_architecture(architecture: Mapping[str, Any], *, model: str) -> None:
    kwargs = architecture["arch_kwargs"]
    keywords = {
        *architecture["_kw_requires_import"],
        *(key for key in _CLASS_KEYWORDS if isinstance(kwargs.get(key), str)),
    }
    names = {"network_class_name": architecture["network_class_name"], **{key: kwargs[key] for key in sorted(keywords)}}
    for key, name in names.items():
        if name is not None and not _is_known_module(name):
            raise CheckpointError(
                f"{model}: plans.json names {name!r} as {key}; only torch modules of "
                f"{', '.join(NETWORK_PACKAGES)} are built; {TRUST_HINT}",
                settings=("trust_checkpoint",),
            )


def _is_known_module(name: object) -> bool:
    """Whether a dotted name is a torch module class defined in one of the known packages.

    Only modules inside those packages are imported to find out.
    """
    import torch

    if not isinstance(name, str) or not any(name.startswith(f"{package}.") for package in NETWORK_PACKAGES):
        return False
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    for length in range(len(parts) - 1, 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part, None)
        if value is None and parts[0] == "dynamic_network_architectures":
            return True  # moved within that package: nnU-Net looks for it there, and nowhere else
        return (
            isinstance(value, type)
            and issubclass(value, torch.nn.Module)
            and any(f"{value.__module__}.".startswith(f"{package}.") for package in NETWORK_PACKAGES)
        )
    return False


def _trainer_class(trainer: str, *, model: str, trust: bool) -> Any:
    """Return the class whose ``build_network_architecture`` counts for ``trainer``; only its file is imported."""
    import nnunetv2

    own_root = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
    external = [Path(part) for part in trainer_folders()]
    roots = (own_root, TRAINERS_FOLDER, *(path for path in external if path.resolve() != TRAINERS_FOLDER.resolve()))
    try:
        source = network_builder(trainer, roots)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {error}") from error
    if source.root == TRAINERS_FOLDER:
        module = importlib.import_module(f"{TRAINERS_PACKAGE}.{source.file.stem}")
    elif source.root == own_root:
        parts = source.file.relative_to(own_root).with_suffix("").parts
        module = importlib.import_module(".".join(("nnunetv2.training.nnUNetTrainer", *parts)))
    elif trust:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        return recursive_find_trainer_class_by_name(trainer)
    else:
        raise CheckpointError(
            f"{model}: trainer {trainer} builds its network by its own code in {source.file}; {TRUST_HINT}",
            settings=("trust_checkpoint",),
        )
    return getattr(module, source.name)
