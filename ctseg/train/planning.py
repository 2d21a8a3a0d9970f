"""Planning and preprocessing of a data set, by nnU-Net's planners and ctseg's."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from ctseg.errors import SetupError
from ctseg.train.before_planning import require_sound, settle_folds
from ctseg.train.in_use import InUse, changes_of_data_set, changes_of_plans, find_in_use, require_nothing_changed
from ctseg.train.names import DEFAULT_PLANNER, SWIN_PLANNER, meant
from ctseg.train.nnunet_output import bars_as_stages, output_into
from ctseg.train.paths import NnunetPaths, dataset_id
from ctseg.train.swin_planner import ESTIMATE_KEY, nnUNetPlannerSwinUNETR
from ctseg.train.worker_pools import pools_that_end
from ctseg.train.worker_processes import default_workers

_LOWRES_FACTOR, _LOWRES_STEP, _MOST_ANISOTROPIC = 2.0, 1.03, 2.0
"""How many times fewer voxels a low resolution has at least, and how nnU-Net's planner gets there."""

LOG_FILE = "plan_log.txt"
"""What nnU-Net prints, beside the plans."""
_PLANNERS = (
    SWIN_PLANNER, DEFAULT_PLANNER, "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL",
)  # fmt: skip
"""Those that a message names."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planning:
    """What to plan and preprocess, and how.

    Attributes:
        planners: Planner classes by name.
        configurations: What to preprocess, of what the plans have.
        gpu_memory_gb: Memory to plan for; None takes each planner's own (for the Swin UNETR the GPU's,
            where there is one). nnU-Net's default planner keeps its own unless it is the only one.
        processes: Worker processes; None takes as many as there are cores, at most 8.
        preprocess: Also write the preprocessed cases.
        clean: Extract the fingerprint anew.
        check: Look at names, ``dataset.json``, headers and label maps of the data set first.
        verify: Look at the voxels of the images, too, and let nnU-Net's own check run.
        group_by: Which cases stay in one fold, see :func:`ctseg.train.groups.group_cases`; None: the folds that came
            with the data set, or those that nnU-Net draws.
        overwrite: Plan and preprocess anew what a training goes on with.
        lowres: Plan a low resolution, and a cascade on it, also where the planner makes none: for small images.
    """

    planners: tuple[str, ...] = (DEFAULT_PLANNER, SWIN_PLANNER)
    configurations: tuple[str, ...] = ("2d", "3d_fullres", "3d_lowres")
    gpu_memory_gb: float | None = None
    processes: int | None = None
    preprocess: bool = True
    clean: bool = False
    check: bool = True
    verify: bool = False
    group_by: str | None = None
    overwrite: bool = False
    lowres: bool = False

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return self.processes or default_workers()


@dataclass(frozen=True)
class Planned:
    """What planning has come to.

    Attributes:
        files: The plans, one file for each planner.
        kept: What stays as it is because a training goes on with it: plans, and the cases of a data identifier.
    """

    files: tuple[Path, ...]
    kept: InUse = field(default_factory=InUse)


@pools_that_end()
def plan_dataset(name: str, paths: NnunetPaths, planning: Planning) -> Planned:
    """Extract the fingerprint, plan with each planner, and preprocess what the plans ask for, once.

    Plans and preprocessed cases that a training in ``paths.results`` goes on with stay as they are. What nnU-Net
    prints goes into ``plan_log.txt`` beside the plans.

    Args:
        name: ``DatasetXXX_Name``.
        paths: With ``raw`` and ``preprocessed``.
        planning: What to plan, and how.

    Raises:
        InputError: The data set has problems, or cases cannot be grouped as asked for.
        SetupError: A planner or a configuration is unknown, or the memory does not suffice.
        TrainingError: Not ``overwrite``, and plans or cases that a training goes on with would become others.
    """
    if paths.raw is None or paths.preprocessed is None:
        raise SetupError("planning needs nnUNet_raw and nnUNet_preprocessed")
    raw, preprocessed = paths.raw / name, paths.preprocessed / name
    if not (raw / "dataset.json").is_file():
        raise SetupError(f"{name}: no dataset.json in {raw}: `ctseg dataset create` makes it")
    classes = {planner: find_planner(planner) for planner in planning.planners}
    require_sound(raw, planning)
    in_use = InUse() if planning.overwrite else find_in_use(name, preprocessed, paths.results)
    if in_use.plans:
        problems = changes_of_data_set(raw, preprocessed, in_use)
        if planning.clean:
            problems.append("the fingerprint would be extracted anew, from which the plans are made")
        require_nothing_changed(name, in_use, problems)
    settle_folds(raw, preprocessed, planning, sorted(in_use.data.values()))
    with output_into(preprocessed / LOG_FILE):
        _extract_fingerprint(name, planning)
        planners = [_plan(name, planner, cls, planning) for planner, cls in classes.items()]
        planned = _saved(name, preprocessed, in_use, planners)
        if planning.preprocess:
            _require_configurations(planned.files, planning)
            done = set(planned.kept.data)
            for file in planned.files:
                _preprocess(name, file, planning, done)
            _copy_labels(raw, preprocessed / "gt_segmentations")
    return planned


def _saved(name: str, preprocessed: Path, in_use: InUse, planners: Sequence[Any]) -> Planned:
    """Save the new plans, once those that a training goes on with are known to stay what they are."""
    files = {planner.plans_identifier: preprocessed / f"{planner.plans_identifier}.json" for planner in planners}
    kept = InUse(
        plans={plans: model for plans, model in in_use.plans.items() if plans in files},
        data={identifier: model for identifier, model in in_use.data.items() if (preprocessed / identifier).is_dir()},
    )
    changes: list[str] = []
    for planner in planners:
        if planner.plans_identifier in kept.plans:
            changes += changes_of_plans(files[planner.plans_identifier], planner.recorded)
    require_nothing_changed(name, in_use, changes)
    for planner in planners:
        if planner.plans_identifier not in kept.plans:
            planner.save()
    return Planned(tuple(files.values()), kept)


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
            f"planner {name!r} is unknown: ctseg brings {SWIN_PLANNER}; nnU-Net has "
            f"{', '.join(_PLANNERS[1:])} and more{meant(name, _PLANNERS)}",
            settings=("planners",),
        )
    return found  # type: ignore[no-any-return]


def summary(plans_file: Path) -> str:
    """Return what plans decided, a line for each configuration."""
    configurations = json.loads(plans_file.read_text())["configurations"]
    return "\n".join(
        f"  {name}: {_described(found)}" for name, found in sorted(configurations.items()) if "patch_size" in found
    )


def _described(configuration: Mapping[str, Any]) -> str:
    parts = [f"patch {' x '.join(map(str, configuration['patch_size']))}, batch {configuration['batch_size']}"]
    kwargs = configuration["architecture"]["arch_kwargs"]
    if "feature_size" in kwargs:
        parts.append(f", feature size {kwargs['feature_size']}")
        parts.append(", gradient checkpointing" if kwargs.get("use_checkpoint") else "")
    if estimate := configuration.get(ESTIMATE_KEY):
        state = "measured" if estimate["measured"] else "estimated, not measured on a GPU"
        parts.append(f"; about {estimate['gb']:.1f} of {estimate['budget_gb']:g} GB ({state})")
    return "".join(parts)


def _require_configurations(files: Sequence[Path], planning: Planning) -> None:
    """Refuse configurations that no plans have and nobody knows; tell those that planners leave out."""
    there = {name for file in files for name in json.loads(file.read_text())["configurations"]}
    for name in planning.configurations:
        if name in there or name in Planning().configurations:
            if name not in there and planning.configurations != Planning().configurations:
                _log.warning(
                    "%s: the plans have none, as the scans are small; planning for low resolution adds it", name
                )
            continue
        raise SetupError(
            f"configuration {name!r} is unknown: the plans have {', '.join(sorted(there))}{meant(name, there)}",
            settings=("configurations",),
        )


def _extract_fingerprint(name: str, planning: Planning) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    with bars_as_stages(fingerprint_extractor):
        extract_fingerprint_dataset(
            dataset_id(name),
            fingerprint_extractor.DatasetFingerprintExtractor,
            planning.workers,
            clean=planning.clean,
            verbose=False,
            show_progress_bar=False,
        )


class _RecordingPlanner(ExperimentPlanner):  # type: ignore[misc]
    """What is put in front of a planner class so that it plans, and saves when it is told to."""

    recorded: dict[str, Any]

    def save_plans(self, plans: dict[str, Any]) -> None:
        recursive_fix_for_json_export(plans)
        self.recorded = plans

    def save(self) -> None:
        super().save_plans(self.recorded)


def _plan(name: str, planner: str, cls: type[ExperimentPlanner], planning: Planning) -> Any:
    """Return a planner that has planned and saved nothing yet."""
    # the plans name the class that made them
    recording: type[Any] = type(cls.__name__, (_RecordingPlanner, cls), {"__module__": cls.__module__})
    memory = _memory_for(planner, planning.gpu_memory_gb, alone=len(planning.planners) == 1)
    instance = recording(name, **({} if memory is None else {"gpu_memory_target_in_gb": memory}))
    with _some_augmentation_workers():
        instance.plan_experiment()
        if planning.lowres:
            _add_lowres(instance)
    return instance


def _add_lowres(planner: Any) -> None:
    """Add a low resolution of half the voxels, and a cascade, to plans that have none.

    Source:
        nnU-Net's ``ExperimentPlanner.plan_experiment``, which drops a low resolution of more than half the voxels.
    """
    configurations = planner.recorded["configurations"]
    if "3d_lowres" in configurations or "3d_fullres" not in configurations:
        return
    fullres = configurations["3d_fullres"]
    fine, shape = np.array(fullres["spacing"]), np.array(fullres["median_image_size_in_voxels"], dtype=float)
    coarse = fine.copy()
    while np.prod(coarse / fine) < _LOWRES_FACTOR:
        lags = coarse.max() / coarse > _MOST_ANISOTROPIC
        coarse[lags if lags.any() else slice(None)] *= _LOWRES_STEP
    median = fine / coarse * shape
    lowres = planner.get_plans_for_configuration(
        coarse,
        tuple(round(side) for side in median),
        planner.generate_data_identifier("3d_lowres"),
        float(np.prod(median) * planner.dataset_json["numTraining"]),
        {},
    )
    fullres["batch_dice"] = True
    configurations["3d_lowres"] = {**lowres, "batch_dice": False, "next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    recursive_fix_for_json_export(planner.recorded)


def _memory_for(planner: str, asked: float | None, *, alone: bool) -> float | None:
    if planner == DEFAULT_PLANNER and not alone:
        return None
    if asked is None and planner == SWIN_PLANNER and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / 1e9)
    return asked


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


def _preprocess(name: str, plans_file: Path, planning: Planning, done: set[str]) -> None:
    """Preprocess the cases for each configuration whose data identifier is not ``done`` yet, and add it there."""
    from nnunetv2.preprocessing.preprocessors import default_preprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans: dict[str, Any] = json.loads(plans_file.read_text())
    manager = PlansManager(plans)
    for configuration in planning.configurations:
        if configuration not in manager.available_configurations:
            continue
        found = manager.get_configuration(configuration)
        if found.data_identifier in done:
            continue
        preprocessor = found.preprocessor_class(verbose=False)
        preprocessor.show_progress_bar = False
        _log.info("%s: preprocessing %s into %s", plans["plans_name"], configuration, found.data_identifier)
        with bars_as_stages(default_preprocessor):
            preprocessor.run(dataset_id(name), configuration, plans["plans_name"], num_processes=planning.workers)
        done.add(found.data_identifier)


def _copy_labels(raw: Path, labels: Path) -> None:
    """Copy the label maps: nnU-Net's validation reads them here, so that a training can run without the raw data."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    labels.mkdir(exist_ok=True)
    dataset = json.loads((raw / "dataset.json").read_text())
    for case, files in get_filenames_of_train_images_and_targets(str(raw), dataset).items():
        source, target = Path(files["label"]), labels / f"{case}{dataset['file_ending']}"
        if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
            shutil.copy2(source, target)
