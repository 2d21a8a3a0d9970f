"""nnU-Net's planning for the Swin UNETR, and the command that runs it beside nnU-Net's own planners.

nnU-Net chooses spacing, normalisation and resampling as ever. What changes is the network and what
hangs on it: sides that 32 divides, and a batch, a width and checkpointing that fit the memory.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from ctseg.errors import InputError, SetupError, TrainingError
from ctseg.train.launch import STOCK_PLANS, SWIN_PLANS
from ctseg.train.paths import NnunetPaths, dataset_id
from ctseg.train.swin_unetr import SIDE_MULTIPLE, SwinUNETR, padded_sides
from ctseg.train.trainers.nnUNetTrainerSwinUNETR import SWIN_CLASS_NAME

SWIN_PLANNER = "nnUNetPlannerSwinUNETR"
DEFAULT_PLANNER = "ExperimentPlanner"
DEFAULT_GPU_MEMORY_GB = 16.0
ESTIMATE_KEY = "ctseg_memory_estimate"
"""Key of the estimate in a configuration of the plans; nnU-Net ignores it."""

FEATURE_SIZES = (48, 36, 24, 12)
WANTED_PATCH_VOXELS = {2: 256**2, 3: 96**3}
"""A wider network is not bought with a patch smaller than this (the one that Swin UNETR was published with)."""
RUNTIME_BYTES = 1_000_000_000
"""CUDA's context and the workspaces of its libraries, roughly."""
LARGEST_SIDE = {2: 1024, 3: 320}


@dataclass(frozen=True)
class MemoryEstimate:
    """GPU memory that a training step takes, counted rather than measured.

    Attributes:
        fixed_bytes: Weights, gradients, optimizer, and what CUDA takes for itself.
        per_patch_bytes: What each patch of the batch adds.
        parameters: Number of weights.
    """

    fixed_bytes: int
    per_patch_bytes: int
    parameters: int

    def bytes_of(self, batch_size: int) -> int:
        """Return the memory of a step with a batch of this size."""
        return self.fixed_bytes + batch_size * self.per_patch_bytes

    def largest_batch(self, budget_bytes: float) -> int:
        """Return how many patches fit; 0 where not even one does."""
        return max(0, int((budget_bytes - self.fixed_bytes) // self.per_patch_bytes))


@cache
def _network(channels: int, heads: int, dims: int, feature_size: int, use_checkpoint: bool) -> SwinUNETR:
    state = torch.random.get_rng_state()
    network: SwinUNETR = SwinUNETR(
        channels, heads, spatial_dims=dims, feature_size=feature_size, use_checkpoint=use_checkpoint
    ).to("meta")
    torch.random.set_rng_state(state)
    return network


@cache
def estimate_memory(
    patch_size: tuple[int, ...], channels: int, heads: int, *, feature_size: int, use_checkpoint: bool
) -> MemoryEstimate:
    """Count what a training step of the Swin UNETR keeps in memory.

    The network runs once on torch's meta device, which computes shapes and no numbers, and the bytes
    that autograd keeps for the backward pass are added up, each storage once, in float32. Mixed
    precision takes less. The largest of them counts three times more: its gradient, and a copy of each
    while a layer works.

    Args:
        patch_size: Voxels along each axis.
        channels: Input channels.
        heads: Output channels.
        feature_size: Width of the network.
        use_checkpoint: Gradient checkpointing.
    """
    network = _network(channels, heads, len(patch_size), feature_size, use_checkpoint)
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # holding it keeps its identity from being given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.empty((1, channels, *patch_size), device="meta"))
    sizes = [storage.nbytes() for storage in kept.values()]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # the loss holds the logits, their softmax, the one-hot labels and a gradient
    loss_bytes = 4 * logits.numel() * 4
    return MemoryEstimate(
        fixed_bytes=parameters * 4 * 4 + RUNTIME_BYTES,
        per_patch_bytes=sum(sizes) + 3 * max(sizes) + loss_bytes,
        parameters=parameters,
    )


@dataclass(frozen=True)
class SwinConfiguration:
    """What the planner decides."""

    patch_size: tuple[int, ...]
    batch_size: int
    feature_size: int
    use_checkpoint: bool
    estimate: MemoryEstimate


def plan_swin(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    *,
    channels: int,
    heads: int,
    gpu_memory_gb: float,
    dataset_voxels: float,
) -> SwinConfiguration:
    """Fit patch, batch and width of the Swin UNETR to data and memory.

    The patch begins with the proportions of the spacing, no larger than the median case, each side
    rounded to a multiple of 32; the side that covers most of its axis shrinks until two patches fit,
    as in nnU-Net. The widest network wins whose patch is the one wanted, or holds at least
    :data:`WANTED_PATCH_VOXELS`; gradient checkpointing comes before a narrower network.

    Args:
        spacing_mm: Distance between voxels along each axis, after resampling.
        median_shape: Median number of voxels along each axis, after resampling.
        channels: Input channels.
        heads: Output channels.
        gpu_memory_gb: Memory of one GPU, in 10^9 bytes.
        dataset_voxels: Voxels of all training cases; a batch covers at most a twentieth.

    Raises:
        SetupError: Not even the smallest network fits.
    """
    dims, budget = len(spacing_mm), gpu_memory_gb * 1e9
    wanted = _first_patch(spacing_mm, median_shape)
    enough = min(WANTED_PATCH_VOXELS[dims], int(np.prod(wanted)))
    choice = None
    for feature_size in FEATURE_SIZES:
        for use_checkpoint in (False, True):

            def estimate(
                patch: tuple[int, ...], feature_size: int = feature_size, use_checkpoint: bool = use_checkpoint
            ) -> MemoryEstimate:
                return estimate_memory(patch, channels, heads, feature_size=feature_size, use_checkpoint=use_checkpoint)

            # memory grows with the voxels: patches that are far too large need no exact count
            probe = estimate((2 * SIDE_MULTIPLE,) * dims)
            per_voxel = 0.7 * probe.per_patch_bytes / (2 * SIDE_MULTIPLE) ** dims
            patch: tuple[int, ...] | None = wanted
            while patch is not None and (
                2 * per_voxel * np.prod(patch) > budget or estimate(patch).largest_batch(budget) < 2
            ):
                patch = _smaller(patch, median_shape)
            if patch is None:
                continue
            choice = (patch, feature_size, use_checkpoint, estimate(patch))
            if np.prod(patch) >= enough:
                return _with_batch(choice, budget, dataset_voxels)
    if choice is None:
        smallest = estimate_memory(
            padded_sides((SIDE_MULTIPLE,) * dims), channels, heads, feature_size=FEATURE_SIZES[-1], use_checkpoint=True
        )
        raise SetupError(
            f"{gpu_memory_gb:g} GB of GPU memory: even the smallest Swin UNETR needs about "
            f"{smallest.bytes_of(2) / 1e9:.1f} GB for a batch of 2: give a larger --gpu_memory_gb"
        )
    return _with_batch(choice, budget, dataset_voxels)


def _first_patch(spacing_mm: Sequence[float], median_shape: Sequence[float]) -> tuple[int, ...]:
    dims = len(spacing_mm)
    proportions = 1 / np.asarray(spacing_mm, dtype=float)
    cube = proportions * ((256**3 if dims == 3 else 2048**2) / np.prod(proportions)) ** (1 / dims)
    sides = np.minimum(np.minimum(cube, np.asarray(median_shape[:dims], dtype=float)), LARGEST_SIDE[dims])
    return padded_sides([max(1, int(side / SIDE_MULTIPLE + 0.5)) * SIDE_MULTIPLE for side in sides])


def _smaller(patch: tuple[int, ...], median_shape: Sequence[float]) -> tuple[int, ...] | None:
    shrinkable = [axis for axis, side in enumerate(patch) if side > SIDE_MULTIPLE]
    if not shrinkable:
        return None
    axis = max(shrinkable, key=lambda axis: patch[axis] / median_shape[axis])
    smaller = tuple(side - SIDE_MULTIPLE if i == axis else side for i, side in enumerate(patch))
    return smaller if padded_sides(smaller) == smaller else None


def _with_batch(
    choice: tuple[tuple[int, ...], int, bool, MemoryEstimate], budget: float, dataset_voxels: float
) -> SwinConfiguration:
    patch, feature_size, use_checkpoint, estimate = choice
    covered = round(dataset_voxels * 0.05 / float(np.prod(patch)))
    return SwinConfiguration(
        patch_size=patch,
        batch_size=max(2, min(estimate.largest_batch(budget), covered)),
        feature_size=feature_size,
        use_checkpoint=use_checkpoint,
        estimate=estimate,
    )


class nnUNetPlannerSwinUNETR(ExperimentPlanner):  # type: ignore[misc]  # noqa: N801 (nnU-Net's way of naming)
    """nnU-Net's planner with a Swin UNETR in place of its U-Net."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = DEFAULT_GPU_MEMORY_GB,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = SWIN_PLANS,
        overwrite_target_spacing: list[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return the folder of preprocessed cases: nnU-Net's own where the same spacing makes them the same."""
        plans = STOCK_PLANS if configuration_name in ("2d", "3d_fullres") else self.plans_identifier
        return f"{plans}_{configuration_name}"

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """Return a configuration of the plans, as nnU-Net's planner does."""
        channel_names = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        decided = plan_swin(
            [float(value) for value in spacing],
            [float(value) for value in median_shape],
            channels=len(channel_names),
            heads=len(self.dataset_json["labels"]),
            gpu_memory_gb=self.UNet_vram_target_GB,
            dataset_voxels=approximate_n_voxels_dataset,
        )
        data, data_kwargs, seg, seg_kwargs = self.determine_resampling()
        softmax, softmax_kwargs = self.determine_segmentation_softmax_export_fn()
        schemes, masks = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return {
            "data_identifier": data_identifier,
            "preprocessor_name": self.preprocessor_name,
            "batch_size": decided.batch_size,
            "patch_size": list(decided.patch_size),
            "median_image_size_in_voxels": median_shape,
            "spacing": spacing,
            "normalization_schemes": schemes,
            "use_mask_for_norm": masks,
            "resampling_fn_data": data.__name__,
            "resampling_fn_seg": seg.__name__,
            "resampling_fn_data_kwargs": data_kwargs,
            "resampling_fn_seg_kwargs": seg_kwargs,
            "resampling_fn_probabilities": softmax.__name__,
            "resampling_fn_probabilities_kwargs": softmax_kwargs,
            "architecture": {
                "network_class_name": SWIN_CLASS_NAME,
                "arch_kwargs": {
                    "spatial_dims": len(decided.patch_size),
                    "feature_size": decided.feature_size,
                    "use_checkpoint": decided.use_checkpoint,
                },
                "_kw_requires_import": [],
            },
            ESTIMATE_KEY: {
                "gb": round(decided.estimate.bytes_of(decided.batch_size) / 1e9, 2),
                "budget_gb": float(self.UNet_vram_target_GB),
                "parameters": decided.estimate.parameters,
                "measured": False,
            },
        }


def find_planner(name: str) -> type[ExperimentPlanner]:
    """Return a planner class by its name: ctseg's, or one of nnU-Net's.

    Raises:
        SetupError: There is no such planner.
    """
    if name == SWIN_PLANNER:
        return nnUNetPlannerSwinUNETR
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = Path(nnunetv2.__path__[0]) / "experiment_planning"
    found = recursive_find_python_class(str(folder), name, current_module="nnunetv2.experiment_planning")
    if found is None:
        raise SetupError(
            f"planner {name!r} is unknown: ctseg brings {SWIN_PLANNER}; nnU-Net has {DEFAULT_PLANNER}, "
            "nnUNetPlannerResEncM, nnUNetPlannerResEncL, nnUNetPlannerResEncXL and more"
        )
    return found  # type: ignore[no-any-return]


def plan_dataset(
    name: str,
    paths: NnunetPaths,
    *,
    planners: Sequence[str] = (DEFAULT_PLANNER, SWIN_PLANNER),
    configurations: Sequence[str] = ("2d", "3d_fullres", "3d_lowres"),
    gpu_memory_gb: float | None = None,
    processes: int | None = None,
    preprocess: bool = True,
    clean: bool = False,
    verify: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Extract the fingerprint, plan with each planner, and preprocess what the plans ask for, once.

    Plans and preprocessed cases that a training in ``paths.results`` goes on with stay as they are.

    Args:
        name: ``DatasetXXX_Name``.
        paths: With ``raw`` and ``preprocessed``.
        planners: Planner classes by name.
        configurations: What to preprocess, of what the plans have.
        gpu_memory_gb: Memory to plan for; None takes each planner's own (for the Swin UNETR the GPU's,
            where there is one). nnU-Net's default planner keeps its own unless it is the only one.
        processes: Worker processes; None takes as many as there are cores, at most 8.
        preprocess: Also write the preprocessed cases.
        clean: Extract the fingerprint anew.
        verify: Check the data set first.
        overwrite: Plan and preprocess anew what a training goes on with.

    Returns:
        The plans files.

    Raises:
        InputError: ``verify``, and the data set has problems.
        SetupError: A planner is unknown, or the memory does not suffice.
        TrainingError: Not ``overwrite``, and plans or cases that a training goes on with would become others.
    """
    if paths.raw is None or paths.preprocessed is None:
        raise SetupError("planning needs nnUNet_raw and nnUNet_preprocessed")
    if not (paths.raw / name / "dataset.json").is_file():
        raise SetupError(f"{name}: no dataset.json in {paths.raw / name}: `ctseg dataset create` makes it")
    classes = [find_planner(planner) for planner in planners]
    workers = processes or min(8, os.cpu_count() or 1)
    if verify:
        from ctseg.train.verify import verify_dataset

        report = verify_dataset(paths.raw / name)
        if report.problems:
            raise InputError(f"{name}: {len(report.problems)} problems in the data set:\n{report}")
    trained = Trained({}, {}) if overwrite else _trained(name, paths.preprocessed / name, paths.results)
    if trained.plans:
        problems = _changes_of_data_set(paths.raw / name, paths.preprocessed / name, trained)
        if clean:
            problems.append("--clean extracts the fingerprint anew, from which the plans are made")
        _require_nothing_changed(name, trained, problems)
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    extract_fingerprint_dataset(
        dataset_id(name), DatasetFingerprintExtractor, workers, clean=clean, verbose=False, show_progress_bar=False
    )
    planned = []
    for planner, cls in zip(planners, classes, strict=True):
        memory = _memory_for(planner, gpu_memory_gb, alone=len(planners) == 1)
        instance = _holding(cls)(name, **({} if memory is None else {"gpu_memory_target_in_gb": memory}))
        with _some_augmentation_workers():
            instance.plan_experiment()
        planned.append(instance)
    folder = paths.preprocessed / name
    kept = {instance.plans_identifier for instance in planned} & set(trained.plans)
    _require_nothing_changed(
        name,
        trained,
        [change for instance in planned if instance.plans_identifier in kept for change in _changes(folder, instance)],
    )
    done = {identifier for identifier in trained.data if (folder / identifier).is_dir()}
    for identifier in sorted(done):
        print(f"{identifier}: nothing to do, {trained.data[identifier]} was trained on these cases")
    written = []
    for instance in planned:
        file = folder / f"{instance.plans_identifier}.json"
        if instance.plans_identifier in kept:
            print(f"{instance.plans_identifier}: nothing to do, the plans are those of {trained.plans[file.stem]}")
        else:
            instance.save()
        written.append(file)
        if preprocess:
            _preprocess(name, paths, file, configurations, workers, done)
    return written


@dataclass(frozen=True)
class Trained:
    """What the trainings of a data set go on with.

    Attributes:
        plans: The folder of a trained model, by the name of its plans.
        data: The folder of a trained model, by the data identifier of its preprocessed cases.
    """

    plans: dict[str, str]
    data: dict[str, str]


def _trained(name: str, folder: Path, results: Path | None) -> Trained:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    trained = Trained({}, {})
    for model in sorted((results / name).glob("*__*__*")) if results is not None else ():
        parts = model.name.split("__")
        if len(parts) != 3 or not any(model.glob("fold_*/checkpoint_*.pth")):
            continue
        file = folder / f"{parts[1]}.json"
        if not file.is_file():
            continue
        trained.plans[parts[1]] = model.name
        manager = PlansManager(json.loads(file.read_text()))
        if parts[2] in manager.available_configurations:
            trained.data[manager.get_configuration(parts[2]).data_identifier] = model.name
    return trained


def _changes_of_data_set(raw: Path, folder: Path, trained: Trained) -> list[str]:
    """Return what has become of the raw data set since the cases of a training were made from it."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    dataset = json.loads((raw / "dataset.json").read_text())
    if (folder / "dataset.json").is_file() and json.loads((folder / "dataset.json").read_text()) != dataset:
        return [f"dataset.json of {raw} is not that in {folder}"]
    problems = []
    cases = get_filenames_of_train_images_and_targets(str(raw), dataset)
    for identifier in sorted(trained.data):
        if not (folder / identifier).is_dir():
            continue
        # nnU-Net writes it last
        made = {file.stem: file.stat().st_mtime for file in (folder / identifier).glob("*.pkl")}
        if missing := sorted(set(cases) - set(made)):
            problems.append(f"{identifier} has no {', '.join(missing[:5])} ({len(missing)} cases of {raw})")
        newer = [
            case
            for case, files in cases.items()
            if case in made
            and max(Path(file).stat().st_mtime for file in (*files["images"], files["label"])) > made[case]
        ]
        if newer:
            problems.append(f"{identifier} is older than the files of {', '.join(newer[:5])} ({len(newer)} cases)")
    return problems


def _changes(folder: Path, planner: Any) -> list[str]:
    """Return what a planner would change in the plans that are there."""
    before = json.loads((folder / f"{planner.plans_identifier}.json").read_text())
    now = json.loads(json.dumps(planner.held))
    changes = []
    for what, former, found in (
        ("", before, {**now, "configurations": before["configurations"]}),
        *((c, before["configurations"].get(c, {}), found) for c, found in now["configurations"].items()),
    ):
        # the estimate names the memory that was asked for, which changes nothing by itself
        keys = sorted(key for key in {*former, *found} - {ESTIMATE_KEY} if former.get(key) != found.get(key))
        changes += [
            f"{planner.plans_identifier} {what}: {key} {former.get(key)} -> {found.get(key)}"
            if len(str(former.get(key))) < 40
            else f"{planner.plans_identifier} {what}: another {key}"
            for key in keys
        ]
    return changes


def _require_nothing_changed(name: str, trained: Trained, changes: Sequence[str]) -> None:
    if changes:
        models = sorted({*trained.plans.values(), *trained.data.values()})
        raise TrainingError(
            f"{name}: {', '.join(models)} could not go on with what would change: {'; '.join(changes)}. "
            "Nothing was changed. --overwrite plans and preprocesses anew all the same: train again then"
        )


class _Holding(ExperimentPlanner):  # type: ignore[misc]
    """What is put in front of a planner class so that it plans, and saves when it is told to."""

    held: dict[str, Any]

    def save_plans(self, plans: dict[str, Any]) -> None:
        recursive_fix_for_json_export(plans)
        self.held = plans

    def save(self) -> None:
        super().save_plans(self.held)


def _holding(planner: type[ExperimentPlanner]) -> type[Any]:
    # the plans name the class that made them
    return type(planner.__name__, (_Holding, planner), {"__module__": planner.__module__})


@contextlib.contextmanager
def _some_augmentation_workers() -> Iterator[None]:
    """Hide ``nnUNet_n_proc_DA=0``: nnU-Net's planner would give torch no thread at all."""
    given = os.environ.get("nnUNet_n_proc_DA")  # noqa: SIM112 (nnU-Net's name)
    if given == "0":
        os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112
    try:
        yield
    finally:
        if given is not None:
            os.environ["nnUNet_n_proc_DA"] = given  # noqa: SIM112


def summary(plans_file: Path) -> str:
    """Return what plans decided, a line for each configuration."""
    plans = json.loads(plans_file.read_text())
    lines = [f"{plans_file}  (train with -p {plans['plans_name']})"]
    for name, found in sorted(plans["configurations"].items()):
        if "patch_size" not in found:
            continue
        line = f"  {name}: patch {' x '.join(map(str, found['patch_size']))}, batch {found['batch_size']}"
        kwargs = found["architecture"]["arch_kwargs"]
        if "feature_size" in kwargs:
            line += f", feature size {kwargs['feature_size']}"
            line += ", gradient checkpointing" if kwargs["use_checkpoint"] else ""
        if estimate := found.get(ESTIMATE_KEY):
            state = "measured" if estimate["measured"] else "estimated, not measured on a GPU"
            line += f"; about {estimate['gb']:.1f} of {estimate['budget_gb']:g} GB ({state})"
        lines.append(line)
    return "\n".join(lines)


def _memory_for(planner: str, asked: float | None, *, alone: bool) -> float | None:
    if planner == DEFAULT_PLANNER and not alone:
        return None
    if asked is None and planner == SWIN_PLANNER and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / 1e9)
    return asked


def _preprocess(
    name: str, paths: NnunetPaths, plans_file: Path, configurations: Sequence[str], workers: int, done: set[str]
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    if paths.raw is None or paths.preprocessed is None:
        raise SetupError("preprocessing needs nnUNet_raw and nnUNet_preprocessed")
    plans: dict[str, Any] = json.loads(plans_file.read_text())
    manager = PlansManager(plans)
    for configuration in configurations:
        if configuration not in manager.available_configurations:
            continue
        found = manager.get_configuration(configuration)
        if found.data_identifier in done:
            continue
        preprocessor = found.preprocessor_class(verbose=False)
        preprocessor.show_progress_bar = False
        print(f"{plans['plans_name']}: preprocessing {configuration} into {found.data_identifier}", flush=True)
        preprocessor.run(dataset_id(name), configuration, plans["plans_name"], num_processes=workers)
        done.add(found.data_identifier)
    # nnU-Net's validation reads the labels from here, so that a training can run without the raw data
    labels = paths.preprocessed / name / "gt_segmentations"
    labels.mkdir(exist_ok=True)
    dataset = json.loads((paths.raw / name / "dataset.json").read_text())
    for case, files in get_filenames_of_train_images_and_targets(str(paths.raw / name), dataset).items():
        source, target = Path(files["label"]), labels / f"{case}{dataset['file_ending']}"
        if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
            shutil.copy2(source, target)
