"""A trained nnU-Net model: read from a results folder or a zip, its network rebuilt, nothing foreign executed.

A checkpoint is a pickle and ``plans.json`` names classes to import, so both can carry code. Here a
checkpoint is loaded with torch's weights-only unpickler and exactly the numpy types that nnU-Net
stores; a class named in the plans is taken only from the packages of :data:`NETWORK_PACKAGES`, and only
if it is a ``torch.nn.Module``; a trainer from outside nnU-Net and ctseg may not build the network.
``trust`` lifts all three, for checkpoints whose origin is known.
"""

import ast
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ctseg.errors import CheckpointError, SetupError
from ctseg.model_spec import KeepLargest, ModelSpec
from ctseg.nnunet.folds import Fold
from ctseg.nnunet.plans import resolve_configuration, spec_from_plans
from ctseg.nnunet.trainers import TRAINERS_FOLDER, TRAINERS_PACKAGE

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

MAX_ZIP_BYTES = 64 << 30
"""Most bytes that a zipped model may unpack to."""
MAX_JSON_BYTES = 64 << 20
_CLASS_KEYWORDS = ("conv_op", "norm_op", "dropout_op", "nonlin")
_TRUST_HINT = (
    "if you know where this model comes from, --trust-checkpoint loads it all the same; "
    "code inside it then runs with your rights"
)


@dataclass(frozen=True)
class TrainedModel:
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
        """A name for the model in a Triton repository: the data set's, in lower case, without its number."""
        return self.dataset_name.partition("_")[2].lower() or self.dataset_name.lower()

    def spec(self, *, name: str, mirroring: str, max_batch_size: int) -> ModelSpec:
        """Return the spec of the float32 network.

        Args:
            name: Name of the model in the Triton repository.
            mirroring: ``graph``, ``client`` or ``none``.
            max_batch_size: Most patches in one request.

        Raises:
            SpecError: The plans ask for something that ctseg does not reproduce.
        """
        return spec_from_plans(
            self.plans,
            self.dataset,
            self.configuration,
            name=name,
            mirror_axes=self.mirror_axes,
            mirroring=mirroring,
            max_batch_size=max_batch_size,
            network_sha256=self.network_sha256,
            postprocessing=self.postprocessing,
            provenance={
                "dataset": self.dataset_name,
                "trainer": self.trainer,
                "plans": str(self.plans.get("plans_name", "")),
                "folds": self.folds,
                "checkpoint": self.checkpoint,
                "tools": {
                    package: version(package)
                    for package in ("ctseg", "nnunetv2", "torch", "dynamic-network-architectures", "onnx", "onnxslim")
                },
            },
        )


def load_trained_model(
    path: Path,
    *,
    configuration: str | None = None,
    trainer: str | None = None,
    plans: str | None = None,
    folds: Sequence[Fold] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    postprocessing: tuple[KeepLargest, ...] = (),
    trust: bool = False,
) -> TrainedModel:
    """Read a trained model and rebuild its network by nnU-Net's own code.

    Args:
        path: The folder ``trainer__plans__configuration``, a folder above it, or the zip that
            ``nnUNetv2_export_model_to_zip`` writes.
        configuration: Which configuration, where ``path`` holds several.
        trainer: Which trainer, where ``path`` holds several.
        plans: Which plans, where ``path`` holds several.
        folds: Which folds; None takes every numbered fold that has the checkpoint, else ``fold_all``.
        checkpoint: Name of the checkpoint file in the folders of the folds.
        postprocessing: Steps that cross-validation found useful.
        trust: Load whatever the files ask for.

    Raises:
        CheckpointError: Nothing or too much was found, a file is missing or broken, weights do not
            fit the network, or the files ask for what only ``trust`` allows.
    """
    with _as_folder(path) as root:
        folder = _model_folder(root, path, (trainer, plans, configuration))
        return _load_folder(folder, folds, checkpoint, postprocessing, trust)


def _load_folder(
    folder: Path,
    folds: Sequence[Fold] | None,
    checkpoint: str,
    postprocessing: tuple[KeepLargest, ...],
    trust: bool,
) -> TrainedModel:
    plans = _read_json(folder / "plans.json")
    dataset = _read_json(folder / "dataset.json")
    names = _folds_of(folder, folds, checkpoint)
    contents = [_load_checkpoint(folder / f"fold_{name}" / checkpoint, trust=trust) for name in names]
    try:
        configuration = str(contents[0]["init_args"]["configuration"])
        trainer = str(contents[0]["trainer_name"])
        weights = [content["network_weights"] for content in contents]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: {error} is missing in {checkpoint}; is this a checkpoint of nnU-Net v2?"
        ) from error
    networks = tuple(_build_network(folder, plans, dataset, configuration, trainer, trust=trust) for _ in names)
    for name, network, its_weights in zip(names, networks, weights, strict=True):
        _load_weights(network, its_weights, source=f"{folder.name} fold_{name}")
    return TrainedModel(
        plans=plans,
        dataset=dataset,
        configuration=configuration,
        trainer=trainer,
        folds=names,
        checkpoint=checkpoint,
        mirror_axes=tuple(contents[0].get("inference_allowed_mirroring_axes") or ()),
        networks=networks,
        network_sha256=_digest_of(weights),
        postprocessing=postprocessing,
    )


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_folder(path: Path) -> Iterator[Path]:
    """Yield ``path``, or a folder with what matters of the zip."""
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise CheckpointError(f"{path}: no such folder or zip file")
    with tempfile.TemporaryDirectory(prefix="ctseg-model-") as temporary:
        _unpack(path, Path(temporary))
        yield Path(temporary)


def _unpack(path: Path, target: Path) -> None:
    """Unpack plans, dataset and checkpoints; refuse names that leave the folder, links, and zip bombs."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = 0
            for member in archive.infolist():
                name = PurePosixPath(member.filename)
                is_link = stat.S_ISLNK(member.external_attr >> 16)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename or is_link:
                    raise CheckpointError(
                        f"{path}: member {member.filename!r} leaves the archive's folder: not unpacked"
                    )
                is_json = name.name in ("plans.json", "dataset.json")
                if member.is_dir() or not (is_json or (name.name.startswith("checkpoint_") and name.suffix == ".pth")):
                    continue
                total += member.file_size
                if total > MAX_ZIP_BYTES or (is_json and member.file_size > MAX_JSON_BYTES):
                    raise CheckpointError(
                        f"{path}: member {member.filename!r} makes the archive unpack to too many bytes"
                    )
                output = target.joinpath(*name.parts)
                output.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, output.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a zip file that nnU-Net wrote: {error}") from error


def _model_folder(root: Path, path: Path, wanted: tuple[str | None, str | None, str | None]) -> Path:
    """Return the one folder with ``plans.json`` at or below ``root`` that fits the wanted names."""
    if (root / "plans.json").is_file():
        return root
    found = sorted({file.parent for depth in ("*", "*/*") for file in root.glob(f"{depth}/plans.json")})
    found = [folder for folder in found if any(folder.glob("fold_*"))]

    def fits(folder: Path) -> bool:
        parts = folder.name.split("__")
        return len(parts) != 3 or all(want in (None, part) for want, part in zip(wanted, parts, strict=True))

    fitting = [folder for folder in found if fits(folder)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(folder.name for folder in found) or "none"
    if not fitting:
        raise CheckpointError(f"{path}: no trained model that fits (trainer__plans__configuration); found: {names}")
    raise CheckpointError(f"{path}: {len(fitting)} trained models fit, choose with -c, -tr and -p; found: {names}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB, which no nnU-Net file of this name is"
            )
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing; a trained model has it beside its folds") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _folds_of(folder: Path, folds: Sequence[Fold] | None, checkpoint: str) -> tuple[str, ...]:
    having = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{checkpoint}"))
    if folds is None:
        names = [name for name in having if name != "all"] or having
        if not names:
            others = sorted({file.name for file in folder.glob("fold_*/checkpoint_*.pth")})
            raise CheckpointError(
                f"{folder}: no fold has {checkpoint}; found {', '.join(others) or 'no checkpoint'}: "
                "finish the training, or choose with -chk"
            )
        return tuple(names)
    if missing := [str(fold) for fold in folds if str(fold) not in having]:
        raise CheckpointError(
            f"{folder}: {checkpoint} is missing for folds {', '.join(missing)}; "
            f"it is there for {', '.join(having) or 'none'}"
        )
    return tuple(str(fold) for fold in folds)


# --- weights ------------------------------------------------------------------------------------


def _numpy_types() -> list[Any]:
    """What nnU-Net's trainer leaves in a checkpoint beside tensors: numpy scalars of its logs."""
    import numpy as np

    names = (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    )
    scalar = np.float32(0).__reduce__()[0]
    return [
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),  # written with numpy 1
        np.dtype,
        *(type(np.dtype(name)) for name in names),
    ]


def _load_checkpoint(path: Path, *, trust: bool) -> dict[str, Any]:
    import pickle

    import torch

    try:
        # mapped: the optimizer's state, two thirds of the file, is never read
        with torch.serialization.safe_globals(_numpy_types()):
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than weights and numbers, which could be code: {_first_line(error)}; {_TRUST_HINT}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint, it is damaged or was not copied whole: {_first_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected nnU-Net's dictionary, found {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__)


def _load_weights(network: "torch.nn.Module", weights: Mapping[str, "torch.Tensor"], *, source: str) -> None:
    import torch

    try:
        network.load_state_dict(dict(weights))
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


def _digest_of(weights: Sequence[Mapping[str, "torch.Tensor"]]) -> str:
    digest = hashlib.sha256()
    for state in weights:
        for name in sorted(state):
            tensor = state[name].detach().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


# --- the network --------------------------------------------------------------------------------


def _build_network(
    folder: Path, plans: dict[str, Any], dataset: dict[str, Any], configuration: str, trainer: str, *, trust: bool
) -> "torch.nn.Module":
    """Build the network as nnU-Net's predictor does, by the trainer's own method."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolve_configuration(plans, configuration)
    try:
        manager = PlansManager(plans)
        resolved = manager.get_configuration(configuration)
        arch = resolved.configuration["architecture"]
        if not trust:
            _check_architecture(folder, arch)
        trainer_class = _trainer_class(folder, trainer, trust=trust)
        network: torch.nn.Module = trainer_class.build_network_architecture(
            manager,
            resolved,
            determine_num_input_channels(manager, resolved, dataset),
            manager.get_label_manager(dataset).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ImportError, AssertionError) as error:
        raise CheckpointError(
            f"{folder.name}: nnU-Net cannot build the network of configuration {configuration}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return network


def _check_architecture(folder: Path, architecture: Mapping[str, Any]) -> None:
    kwargs = architecture["arch_kwargs"]
    keywords = {
        *architecture["_kw_requires_import"],
        *(key for key in _CLASS_KEYWORDS if isinstance(kwargs.get(key), str)),
    }
    names = {"network_class_name": architecture["network_class_name"], **{key: kwargs[key] for key in sorted(keywords)}}
    for key, name in names.items():
        if name is not None and not _is_known_module(name):
            raise CheckpointError(
                f"{folder.name}: plans.json names {name!r} as {key}; only torch modules of "
                f"{', '.join(NETWORK_PACKAGES)} are built; {_TRUST_HINT}"
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


@dataclass(frozen=True)
class _TrainerSource:
    """Where a trainer class stands, learnt without importing it."""

    file: Path
    root: Path
    bases: tuple[str, ...]
    builds_network: bool


def _trainer_class(folder: Path, trainer: str, *, trust: bool) -> Any:
    """Return the class whose ``build_network_architecture`` counts for ``trainer``.

    nnU-Net's own search imports every trainer file of nnU-Net and of ``nnUNet_extTrainer``; here the
    files are only parsed, and just the one that builds the network is imported.
    """
    import nnunetv2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    own_root = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
    external = [Path(part) for part in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if part.strip()]  # noqa: SIM112 (nnU-Net's name)
    roots = (own_root, TRAINERS_FOLDER, *(path for path in external if path.resolve() != TRAINERS_FOLDER.resolve()))
    name = trainer
    for _ in range(32):
        source = _find_trainer(name, roots)
        if source is None:
            raise CheckpointError(
                f"{folder.name}: trained by {trainer}, and the class {name} is neither in nnU-Net nor in a folder of "
                "nnUNet_extTrainer: add the folder of its file to that variable"
            )
        if source.builds_network or len(source.bases) != 1:
            break
        (name,) = source.bases
    else:
        raise CheckpointError(f"{folder.name}: trainer {trainer} inherits from itself")
    if name == nnUNetTrainer.__name__ and source.root == own_root:
        return nnUNetTrainer
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
            f"{folder.name}: trainer {trainer} builds its network by its own code in {source.file}; {_TRUST_HINT}"
        )
    return getattr(module, name)


def _find_trainer(name: str, roots: Sequence[Path]) -> _TrainerSource | None:
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            if found := _classes_of(file).get(name):
                return _TrainerSource(file=file, root=root, bases=found[0], builds_network=found[1])
    return None


@cache
def _classes_of(file: Path) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Parse a file: for each class the last parts of its bases' names, and whether it builds the network."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    classes = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
        defined = {item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)}
        plain = all(isinstance(item, ast.FunctionDef | ast.Expr | ast.Pass) for item in node.body)
        builds = "build_network_architecture" in defined or not plain or bool(node.decorator_list or node.keywords)
        classes[node.name] = (bases, builds)
    return classes


def require_extra() -> None:
    """Refuse by name what the deployment layer needs and this installation lacks.

    Raises:
        SetupError: A package of the extra ``ctseg[deploy]`` is missing.
    """
    from importlib.util import find_spec

    needed = ("torch", "nnunetv2", "onnx", "onnxruntime", "onnxslim", "onnxscript")
    if missing := [package for package in needed if package not in sys.modules and find_spec(package) is None]:
        raise SetupError(f"{', '.join(missing)} not installed: `pip install ctseg[deploy]`")
