"""From a command line to trained folds."""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from ctseg.errors import CheckpointError, SetupError, TrainingError
from ctseg.nnunet.folds import CROSS_VALIDATION_FOLDS, Fold
from ctseg.nnunet.trainers import trainer_folders, trainer_names
from ctseg.train.checkpoints import BEST, FINAL, TrainingState, replacing, settle, training_state
from ctseg.train.extended_trainer import extended, seed_everything, unwrapped
from ctseg.train.groups import FOLDS, SPLITS_FILE, too_few
from ctseg.train.names import SWIN_TRAINER, meant
from ctseg.train.options import Training, TrainingOptions
from ctseg.train.paths import NnunetPaths
from ctseg.train.placement import Placement
from ctseg.train.pretrained import load_pretrained, weights_in
from ctseg.train.shortages import explaining_full_disk, explaining_full_gpu
from ctseg.train.stopping import StopRequest, TrainingStopped
from ctseg.train.validation import validation_told
from ctseg.train.worker_pools import pools_that_end
from ctseg.train.worker_processes import end_workers_with_this_process, no_workers_left

States = Mapping[Fold, TrainingState | None]
"""How far each fold has come; None where it has not begun."""


@dataclass(frozen=True)
class _Run:
    """A training in this process.

    Attributes:
        training: What to train.
        trainer_class: nnU-Net's, or one derived from it.
        plans: The plans, as in their file.
        dataset: ``dataset.json``.
        folder: Of the trained model.
        placement: Where this process runs.
    """

    training: Training
    trainer_class: type[Any]
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    folder: Path
    placement: Placement

    def fold(self, fold: Fold) -> Path:
        return self.folder / f"fold_{fold}"

    def wait_for_the_others(self) -> None:
        if self.placement.distributed:
            torch.distributed.barrier()


def find_trainer(name: str) -> type[Any]:
    """Return a trainer class by its name, from ctseg, nnU-Net or the folders in ``nnUNet_extTrainer``.

    Raises:
        SetupError: There is no such trainer.
    """
    if name == SWIN_TRAINER:
        from ctseg.train.trainers.nnUNetTrainerSwinUNETR import nnUNetTrainerSwinUNETR

        return nnUNetTrainerSwinUNETR
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        # it tells where it searches
        with contextlib.redirect_stdout(io.StringIO()):
            found: type[Any] = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise SetupError(
            f"trainer {name!r} is unknown: it is neither nnU-Net's nor in nnUNet_extTrainer "
            f"({os.pathsep.join(trainer_folders())}); ctseg brings {SWIN_TRAINER}{meant(name, _trainer_names())}",
            settings=("trainer",),
        ) from error
    return found


def _trainer_names() -> list[str]:
    """Return the names of nnU-Net's trainers, of those in ``nnUNet_extTrainer``, and of ctseg's."""
    import nnunetv2

    nnunets = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
    return [SWIN_TRAINER, *trainer_names([nnunets, *map(Path, trainer_folders())])]


def train(training: Training, paths: NnunetPaths, placement: Placement) -> None:
    """Train the folds, one after another; each is validated when it is done.

    Everything that can be known to be wrong is told before the first fold begins.

    Raises:
        SetupError: Plans, configuration, preprocessed cases or batch do not fit.
        CheckpointError: There is nothing to continue, or a checkpoint is unreadable.
        TrainingError: There is a training already, or the memory does not suffice.
        OutputError: A checkpoint could not be written, or the disk is full.
        TrainingStopped: SIGTERM or SIGHUP came; the state is saved.
    """
    if paths.results is None:
        raise SetupError("nnUNet_results is not set")
    trainer_class = find_trainer(training.trainer)
    plans, dataset = _plans_and_dataset(training, paths)
    folder = paths.results / training.dataset / f"{training.trainer}__{training.plans}__{training.configuration}"
    _require_folds(training, paths)
    _require_previous_stage(training, plans, paths)
    run = _Run(training, trainer_class, plans, dataset, folder, placement)
    states = _checked(run)
    end_workers_with_this_process()
    stop = StopRequest()
    with no_workers_left(), pools_that_end(), stop.on_signals():
        for fold in training.folds:
            with explaining_full_gpu(training, plans), explaining_full_disk(folder), _former_kept(run, fold):
                _train_fold(run, fold, states[fold], stop)


def _plans_and_dataset(training: Training, paths: NnunetPaths) -> tuple[dict[str, Any], dict[str, Any]]:
    if paths.preprocessed is None:
        raise SetupError("nnUNet_preprocessed is not set")
    folder = paths.preprocessed / training.dataset
    plans_file = folder / f"{training.plans}.json"
    if not plans_file.is_file():
        found = sorted(file.stem for file in folder.glob("*Plans*.json"))
        raise SetupError(
            f"{training.dataset}: no plans {training.plans!r} in {folder} (found: {', '.join(found) or 'none'})"
            f"{meant(training.plans, found)}: `ctseg plan` makes them",
            settings=("plans",),
        )
    plans: dict[str, Any] = json.loads(plans_file.read_text())
    dataset: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    if training.configuration not in plans["configurations"]:
        raise SetupError(
            f"{training.dataset}: plans {training.plans} have no configuration {training.configuration!r}, "
            f"found {', '.join(plans['configurations'])}{meant(training.configuration, plans['configurations'])}"
        )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    data = folder / PlansManager(plans).get_configuration(training.configuration).data_identifier
    if not data.is_dir() or not any(data.iterdir()):
        raise SetupError(
            f"{training.dataset}: no preprocessed cases in {data}: `ctseg plan` makes them for {training.configuration}"
        )
    cases = len(list(data.glob("*.pkl")))
    if cases < FOLDS and not (folder / SPLITS_FILE).is_file() and any(fold != "all" for fold in training.folds):
        raise SetupError(f"{training.dataset}: {too_few(cases)}")
    return plans, dataset


def _require_folds(training: Training, paths: NnunetPaths) -> None:
    """Refuse folds that the splits do not have: nnU-Net would train on cases drawn at random.

    Raises:
        SetupError: There is no such fold; those that there are are told.
    """
    if paths.preprocessed is None:
        return
    asked = [fold for fold in training.folds if fold != "all"]
    file = paths.preprocessed / training.dataset / SPLITS_FILE
    if file.is_file():
        try:
            count = len(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise SetupError(f"{file}: not a list of folds ({error}): remove it, or write it anew") from error
        source = f"{file} has"
    else:
        count, source = FOLDS, "the cross-validation has"
    if missing := [str(fold) for fold in asked if int(fold) >= count]:
        there = "none" if not count else "fold 0" if count == 1 else f"folds 0 to {count - 1}"
        raise SetupError(
            f"{training.dataset}: there is no fold {', '.join(missing)}: {source} {there}; `full` trains on every case",
            settings=("folds",),
        )


def _require_previous_stage(training: Training, plans: Mapping[str, Any], paths: NnunetPaths) -> None:
    """Refuse the second stage of a cascade while cases lack the labels that the first stage's validation leaves.

    Raises:
        TrainingError: Some do; which folds of the first stage are validated is told.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = PlansManager(plans).get_configuration(training.configuration)
    previous = configuration.previous_stage_name
    if previous is None or paths.results is None or paths.preprocessed is None:
        return
    first = paths.results / training.dataset / f"{training.trainer}__{training.plans}__{previous}"
    labels = first / "predicted_next_stage" / training.configuration
    data = paths.preprocessed / training.dataset / configuration.data_identifier
    cases = {file.stem for file in data.glob("*.pkl")}
    missing = sorted(cases - {file.stem for file in labels.glob("*") if file.suffix in (".b2nd", ".npz")})
    if not missing:
        return
    validated = [fold for fold in CROSS_VALIDATION_FOLDS if (first / f"fold_{fold}/validation/summary.json").is_file()]
    raise TrainingError(
        f"{training.configuration} is trained on the labels that {previous} finds, and {len(missing)} of {len(cases)} "
        f"cases have none in {labels} ({', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}): first train and "
        f"validate all folds of {previous} with {training.trainer} and {training.plans} (validated: "
        f"{', '.join(map(str, validated)) or 'none'})",
        settings=("configuration",),
    )


def _checked(run: _Run) -> States:
    """Return how far the folds have come, once nothing stands against training them."""
    training = run.training
    if training.pretrained_weights is not None:
        weights_in(training.pretrained_weights)
    if not training.resume:
        # known without what is there, so nobody has to wait for the others
        _require_batch_shared(run, {})
    if run.placement.rank == 0:
        for fold in training.folds:
            settle(run.fold(fold))
    run.wait_for_the_others()
    states = _states(run)
    if training.resume:
        _require_batch_shared(run, states)
    # nobody begins, and writes, while another still looks at what is there
    run.wait_for_the_others()
    return states


def _states(run: _Run) -> States:
    training = run.training
    states = {fold: training_state(run.fold(fold)) for fold in training.folds}
    problems = []
    for fold, state in states.items():
        where = run.fold(fold)
        if training.validation_only:
            needed = where / (BEST if training.val_best else FINAL)
            if not needed.is_file():
                problems.append(f"fold {fold}: {needed} is missing, so there is nothing to validate{_further(state)}")
        elif training.resume:
            # of several folds, those that never began may begin
            if state is None and (len(states) == 1 or where.exists() or not any(states.values())):
                problems.append(f"fold {fold}: no checkpoint in {where} to continue from: begin its training instead")
        elif state is not None and not training.overwrite:
            raise TrainingError(
                f"fold {fold}: {state.file} holds {state.epochs_done} epochs already: "
                "continue it, or overwrite it, which begins anew and removes it",
                settings=("resume", "overwrite"),
            )
    if problems:
        raise CheckpointError("; ".join(problems))
    return states


def _require_batch_shared(run: _Run, states: States) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    training = run.training
    planned = int(PlansManager(run.plans).get_configuration(training.configuration).batch_size)
    for fold in training.folds:
        state = states.get(fold)
        recorded = state.options.batch_size if state is not None and state.options is not None else None
        batch, ranks = training.options.batch_size or recorded or planned, run.placement.world_size
        if batch % ranks:
            raise SetupError(
                f"a batch of {batch} cannot be shared evenly by {ranks} processes: give a batch size that is a "
                f"multiple of {ranks}; where memory is short, accumulate: a batch size of {ranks} with "
                f"{max(2, round(batch / ranks))} gradient accumulation steps",
                settings=("batch_size", "gradient_accumulation_steps"),
            )


def _train_fold(run: _Run, fold: Fold, state: TrainingState | None, stop: StopRequest) -> None:
    training = run.training
    options, changes = _options(training, state)
    if options.seed is not None:
        seed_everything(options.seed)
    cls = extended(run.trainer_class, options, run.placement, stop)
    cls.disable_tta = training.disable_tta
    plans: dict[str, Any] = json.loads(json.dumps(run.plans))
    # what nnU-Net's get_trainer_from_args adds, and the trainer takes out again
    plans["continue_training"] = training.resume
    trainer = cls(plans, training.configuration, fold, json.loads(json.dumps(run.dataset)), run.placement.device)
    trainer.disable_checkpointing = training.disable_checkpointing
    trainer.initialize()
    _load_weights(run, trainer, fold, state)
    for change in changes:
        trainer.tell(f"continued with other values: {change}")
    if not training.validation_only:
        _run_epochs(trainer, options, final=run.fold(fold) / FINAL, name=f"fold {fold}")
    if training.skip_validation:
        trainer.tell(f"fold {_word(fold)} is not validated: `ctseg results` and `ctseg find-best` need that")
        return
    if training.val_best and not training.validation_only:
        trainer.load_checkpoint(str(run.fold(fold) / BEST))
    # nothing is left to be saved
    stopped = TrainingStopped(
        f"stopped in the validation of fold {_word(fold)}: the weights are saved, and can be validated again",
        settings=("resume", "validation_only"),
    )
    if training.disable_checkpointing:
        stopped = TrainingStopped(f"stopped in the validation of fold {_word(fold)}: nothing is saved", settings=())
    summary = run.fold(fold) / "validation" / "summary.json"
    former = summary.stat().st_mtime_ns if summary.is_file() else None
    with stop.at_once(stopped):
        trainer.perform_actual_validation(training.save_probabilities)
    if run.placement.rank == 0 and summary.is_file() and summary.stat().st_mtime_ns != former:
        trainer.tell(f"validation of fold {_word(fold)}: {validation_told(summary.parent)}")


def _word(fold: Fold) -> str:
    return "full" if fold == "all" else str(fold)


def _further(state: TrainingState | None) -> str:
    """Return how a fold that is not trained to its end can be."""
    if state is None:
        return ": train it first"
    return f": its training has done {state.epochs_done} epochs, and can be continued"


def _options(training: Training, state: TrainingState | None) -> tuple[TrainingOptions, list[str]]:
    """Return the options, those of the checkpoint where a training goes on, and a line for each that changes."""
    if not training.resume or state is None or state.options is None:
        return training.options, []
    return training.options.continued_from(state.options)


def _load_weights(run: _Run, trainer: Any, fold: Fold, state: TrainingState | None) -> None:
    training = run.training
    if training.validation_only:
        trainer.load_checkpoint(str(run.fold(fold) / (BEST if training.val_best else FINAL)))
    elif training.resume and state is not None:
        trainer.load_checkpoint(str(state.file))
        trainer.tell(f"continued from {state.file}: {state.epochs_done} epochs are done")
    elif training.pretrained_weights is not None:
        trainer.tell(load_pretrained(unwrapped(trainer.network), training.pretrained_weights))


def _run_epochs(trainer: Any, options: TrainingOptions, *, final: Path, name: str) -> None:
    trainer.print_to_log_file(f"training of {name}: {trainer.record()}")
    if options.seed is not None and os.environ.get("nnUNet_n_proc_DA") != "0":  # noqa: SIM112 (nnU-Net's name)
        trainer.tell(
            "NOTE: the seed fixes the weights to begin with; batches come from several processes in no fixed "
            "order unless nnUNet_n_proc_DA=0"
        )
    if trainer.current_epoch < trainer.num_epochs:
        with no_workers_left():
            try:
                trainer.run_training()
            except BaseException:
                trainer.finish_dataloaders()
                raise
    elif not final.is_file():
        trainer.on_train_end()


@contextlib.contextmanager
def _former_kept(run: _Run, fold: Fold) -> Iterator[None]:
    """Where a training begins anew, keep the former one until the new one has saved something."""
    anew = run.training.begins_anew
    with replacing(run.fold(fold)) if anew and run.placement.rank == 0 else contextlib.nullcontext():
        if anew:
            run.wait_for_the_others()
        yield
