"""From a command line to trained folds."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from ctseg.errors import CheckpointError, OutputError, SetupError, TrainingError
from ctseg.nnunet.folds import Fold
from ctseg.train.checkpoints import FINAL, NO_SPACE, TrainingState, replacing, settle, training_state
from ctseg.train.extended_trainer import Placement, StopRequest, extended, seed_everything, unwrapped
from ctseg.train.options import TrainingOptions
from ctseg.train.paths import NnunetPaths, trainer_folders
from ctseg.train.pretrained import load_pretrained, weights_in
from ctseg.train.worker_processes import end_workers_with_this_process, no_workers_left

SWIN_TRAINER = "nnUNetTrainerSwinUNETR"
SWIN_PLANS = "nnUNetSwinUNETRPlans"
STOCK_PLANS = "nnUNetPlans"
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""A validation may keep a process waiting for as long as the others have cases left."""


@dataclass(frozen=True)
class Training:
    """What to train, and how to begin.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        configuration: A configuration of the plans.
        folds: The folds, trained one after another.
        trainer: Name of the trainer class.
        plans: Name of the plans.
        options: What differs from plans and trainer.
        resume: Continue from the most advanced checkpoint (``--c``).
        overwrite: Begin anew where there is a training already.
        validation_only: Only segment the validation cases, with the final checkpoint (``--val``).
        save_probabilities: Keep the validation's probabilities, which ensembles need (``--npz``).
        pretrained_weights: A file of weights to begin with.
    """

    dataset: str
    configuration: str
    folds: tuple[Fold, ...]
    trainer: str
    plans: str
    options: TrainingOptions
    resume: bool = False
    overwrite: bool = False
    validation_only: bool = False
    save_probabilities: bool = False
    pretrained_weights: Path | None = None


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
        found: type[Any] = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise SetupError(
            f"trainer {name!r} is unknown: it is neither nnU-Net's nor in nnUNet_extTrainer "
            f"({os.pathsep.join(trainer_folders())}); ctseg brings {SWIN_TRAINER}"
        ) from error
    return found


def default_plans(trainer: str) -> str:
    """Return the plans that a trainer takes unless told."""
    return SWIN_PLANS if trainer == SWIN_TRAINER else STOCK_PLANS


@contextlib.contextmanager
def placed(device: str | None, *, distributed: bool) -> Iterator[Placement]:
    """Choose the device of this process, and join the others where ``torchrun`` started several.

    Args:
        device: ``cuda``, ``cpu`` or ``mps``; None takes CUDA where there is a GPU, else the CPU.
        distributed: ``--distributed=ddp`` was given.

    Raises:
        SetupError: The device is not there, or the processes were not started by ``torchrun``.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SetupError("no GPU: torch finds no CUDA device; give -device cpu, or look at `ctseg doctor`")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SetupError("torch finds no MPS device: give -device cpu")
    world_size, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if "RANK" not in os.environ:
        if distributed:
            raise SetupError(
                "--distributed=ddp needs processes that torchrun starts: "
                "`torchrun --nproc_per_node=2 -m ctseg train … --distributed=ddp`"
            )
        world_size, local_rank = 1, 0
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise SetupError(
            f"process {local_rank} of this node has no GPU, torch finds {torch.cuda.device_count()}: "
            f"start torchrun with --nproc_per_node={torch.cuda.device_count()}"
        )
    _set_threads(kind, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch_device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(torch_device)
        torch.backends.cudnn.benchmark = True
    if world_size == 1:
        yield Placement(torch_device)
        return
    if kind == "mps":
        raise SetupError("several processes need CUDA or the CPU, not MPS")
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Placement(torch_device, rank=torch.distributed.get_rank(), world_size=world_size)
    finally:
        # a group whose members died cannot be left in good order
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def _set_threads(kind: str, processes: int) -> None:
    # as nnU-Net does: on a GPU more threads only disturb the workers that prepare batches
    wanted = 1 if kind == "cuda" else max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(min(wanted, int(os.environ.get("OMP_NUM_THREADS", wanted))))


def train(training: Training, paths: NnunetPaths, placement: Placement) -> None:
    """Train the folds, one after another; each is validated when it is done.

    Everything that can be known to be wrong is told before the first fold begins.

    Raises:
        SetupError: Plans, configuration, preprocessed cases or batch do not fit.
        CheckpointError: There is nothing to continue, or a checkpoint is unreadable.
        TrainingError: There is a training already, or the memory does not suffice.
        OutputError: A checkpoint could not be written, or the disk is full.
        TrainingStopped: SIGTERM came; the state is saved.
    """
    trainer_class = find_trainer(training.trainer)
    plans, dataset = _plans_and_dataset(training, paths)
    if paths.results is None:
        raise SetupError("nnUNet_results is not set")
    folder = paths.results / training.dataset / f"{training.trainer}__{training.plans}__{training.configuration}"
    if training.pretrained_weights is not None:
        weights_in(training.pretrained_weights)
    if not training.resume:
        # known without what is there, so nobody has to wait for the others
        _require_batch_shared(training, plans, {}, placement)
    if placement.rank == 0:
        for fold in training.folds:
            settle(folder / f"fold_{fold}")
    if placement.distributed:
        torch.distributed.barrier()
    states = _states(training, folder)
    if training.resume:
        _require_batch_shared(training, plans, states, placement)
    if placement.distributed:
        # nobody begins, and writes, while another still looks at what is there
        torch.distributed.barrier()
    end_workers_with_this_process()
    stop = StopRequest()
    with stop.on_sigterm():
        for fold in training.folds:
            with (
                _memory_advice(training, plans),
                _full_disk_told(folder),
                _former_kept(training, folder, fold, placement),
            ):
                _train_fold(training, fold, trainer_class, plans, dataset, states[fold], placement, stop, folder)


def _plans_and_dataset(training: Training, paths: NnunetPaths) -> tuple[dict[str, Any], dict[str, Any]]:
    if paths.preprocessed is None:
        raise SetupError("nnUNet_preprocessed is not set")
    folder = paths.preprocessed / training.dataset
    plans_file, number = folder / f"{training.plans}.json", training.dataset[7:10]
    if not plans_file.is_file():
        found = sorted(file.stem for file in folder.glob("*Plans*.json"))
        raise SetupError(
            f"{training.dataset}: no plans {training.plans!r} in {folder} (found: {', '.join(found) or 'none'}): "
            f"run `ctseg plan -d {number}`"
        )
    plans: dict[str, Any] = json.loads(plans_file.read_text())
    dataset: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    if training.configuration not in plans["configurations"]:
        raise SetupError(
            f"{training.dataset}: plans {training.plans} have no configuration {training.configuration!r}, "
            f"found {', '.join(plans['configurations'])}"
        )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    data = folder / PlansManager(plans).get_configuration(training.configuration).data_identifier
    if not data.is_dir() or not any(data.iterdir()):
        raise SetupError(
            f"{training.dataset}: no preprocessed cases in {data}: "
            f"run `ctseg plan -d {number} -c {training.configuration}`"
        )
    return plans, dataset


def _states(training: Training, folder: Path) -> dict[Fold, TrainingState | None]:
    states = {fold: training_state(folder / f"fold_{fold}") for fold in training.folds}
    problems = []
    for fold, state in states.items():
        where = folder / f"fold_{fold}"
        if training.validation_only:
            if not (where / FINAL).is_file():
                problems.append(f"fold {fold}: {where / FINAL} is missing, so there is nothing to validate")
        elif training.resume:
            # of several folds, those that never began may begin
            if state is None and (len(states) == 1 or where.exists() or not any(states.values())):
                problems.append(f"fold {fold}: no checkpoint in {where} to continue from: train it without --c")
        elif state is not None and not training.overwrite:
            raise TrainingError(
                f"fold {fold}: {state.file} holds {state.epochs_done} epochs already: "
                "--c continues it, --overwrite begins anew and removes it"
            )
    if problems:
        raise CheckpointError("; ".join(problems))
    return states


def _require_batch_shared(
    training: Training, plans: dict[str, Any], states: dict[Fold, TrainingState | None], placement: Placement
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    planned = int(PlansManager(plans).get_configuration(training.configuration).batch_size)
    for fold in training.folds:
        state = states[fold] if training.resume else None
        recorded = state.options.batch_size if state is not None and state.options is not None else None
        batch, ranks = training.options.batch_size or recorded or planned, placement.world_size
        if batch % ranks:
            advice = f"--batch_size {ranks} --gradient_accumulation_steps {max(2, round(batch / ranks))}"
            raise SetupError(
                f"a batch of {batch} cannot be shared evenly by {ranks} processes: give a multiple of {ranks} "
                f"as --batch_size; where memory is short, accumulate: `{advice}`"
            )


def _train_fold(
    training: Training,
    fold: Fold,
    trainer_class: type[Any],
    plans: dict[str, Any],
    dataset: dict[str, Any],
    state: TrainingState | None,
    placement: Placement,
    stop: StopRequest,
    folder: Path,
) -> None:
    options = training.options
    changes: list[str] = []
    resumed = state if training.resume else None
    if resumed is not None and resumed.options is not None:
        options, changes = options.continued_from(resumed.options)
    if options.seed is not None:
        seed_everything(options.seed)
    cls = extended(trainer_class, options, placement, stop)
    own_plans: dict[str, Any] = json.loads(json.dumps(plans))
    # what nnU-Net's get_trainer_from_args adds, and the trainer takes out again
    own_plans["continue_training"] = training.resume
    trainer = cls(own_plans, training.configuration, fold, json.loads(json.dumps(dataset)), placement.device)
    trainer.initialize()
    if training.validation_only:
        trainer.load_checkpoint(str(folder / f"fold_{fold}" / FINAL))
    elif resumed is not None:
        trainer.load_checkpoint(str(resumed.file))
        trainer.print_to_log_file(f"continued from {resumed.file}: {resumed.epochs_done} epochs are done")
        for change in changes:
            trainer.print_to_log_file(f"continued with other values: {change}")
    elif training.pretrained_weights is not None:
        trainer.print_to_log_file(load_pretrained(unwrapped(trainer.network), training.pretrained_weights))
    if not training.validation_only:
        trainer.print_to_log_file(f"training of fold {fold}: {trainer.record()}")
        if options.seed is not None and os.environ.get("nnUNet_n_proc_DA") != "0":  # noqa: SIM112 (nnU-Net's name)
            trainer.print_to_log_file(
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
        elif not (folder / f"fold_{fold}" / FINAL).is_file():
            trainer.on_train_end()
    # nothing is left to be saved
    with stop.at_once(f"stopped in the validation of fold {fold}: the weights are saved; --c or --val validates again"):
        trainer.perform_actual_validation(training.save_probabilities)


@contextlib.contextmanager
def _former_kept(training: Training, folder: Path, fold: Fold, placement: Placement) -> Iterator[None]:
    """Where a training begins anew, keep the former one until the new one has saved something."""
    anew = training.overwrite and not training.resume and not training.validation_only
    with replacing(folder / f"fold_{fold}") if anew and placement.rank == 0 else contextlib.nullcontext():
        if anew and placement.distributed:
            torch.distributed.barrier()
        yield


@contextlib.contextmanager
def _memory_advice(training: Training, plans: dict[str, Any]) -> Iterator[None]:
    """Turn a full GPU into advice with numbers."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"{_shortage(training, plans)} ({error})") from error


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Turn a full disk, met by any of the files that nnU-Net writes, into a message."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free_mb = shutil.disk_usage(folder.parents[1]).free / 2**20
        raise OutputError(
            f"{error.filename or folder}: no space left ({error.strerror}, {free_mb:.0f} MiB free): make room; "
            "what was saved is intact: continue with --c"
        ) from error


def _shortage(training: Training, plans: dict[str, Any]) -> str:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = PlansManager(plans).get_configuration(training.configuration)
    batch = training.options.batch_size or int(configuration.batch_size)
    steps = training.options.gradient_accumulation_steps or 1
    advice = []
    if batch > 1:
        advice.append(
            f"--batch_size {batch // 2} --gradient_accumulation_steps {steps * 2} takes about half the memory "
            f"for the same {batch * steps} patches a step"
        )
    kwargs = configuration.network_arch_init_kwargs
    if "SwinUNETR" in configuration.network_arch_class_name and not kwargs.get("use_checkpoint"):
        advice.append(
            f"`ctseg plan -d {training.dataset[7:10]} --gpu_memory_gb N` with your GPU's memory turns gradient "
            'checkpointing on where needed (or set "use_checkpoint": true in the plans\' arch_kwargs)'
        )
    else:
        advice.append(f"`ctseg plan -d {training.dataset[7:10]} --gpu_memory_gb N` plans a smaller patch")
    patch = " x ".join(str(side) for side in configuration.patch_size)
    return (
        f"the GPU's memory does not suffice for batches of {batch} patches of {patch}: {'; '.join(advice)}. "
        "What was saved is intact: continue with --c"
    )
