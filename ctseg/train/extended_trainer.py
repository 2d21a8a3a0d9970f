"""ctseg's training options for any nnU-Net trainer, without changing the trainer's class name.

nnU-Net names the folder of a trained model after its trainer class, and finds the class by the name
in the checkpoint. So :func:`extended` makes a subclass of the same name at run time: folders,
checkpoints and ``nnUNetv2_predict`` are those of the stock trainer.
"""

import contextlib
import importlib.util
import io
import logging
import random
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._dynamo import OptimizedModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ctseg.errors import SetupError
from ctseg.nnunet.checkpoint import read_checkpoint
from ctseg.train.checkpoints import LATEST, settle, write_checkpoint
from ctseg.train.epochs import last_epoch
from ctseg.train.options import RECORD_KEY, TrainingOptions
from ctseg.train.placement import Placement
from ctseg.train.stopping import StopRequest, TrainingStopped
from ctseg.train.training_step import accumulated_step, autocast, without_autocast
from ctseg.train.validation import CaseCounter, validation_as_asked
from ctseg.train.worker_pools import BOUND_S

_TOLD = ("warning", "error", "failed", "exception")
"""What a line of nnU-Net's has that the terminal shows."""

_log = logging.getLogger(__name__)

GRADIENT_NORM_LIMITS = {"nnUNetTrainer": 12.0, "AbstractPrimus": 1.0}
"""At what norm the ``train_step`` of nnU-Net's trainer classes clips the gradient."""


class _Extension(nnUNetTrainer):  # type: ignore[misc]  # nnU-Net publishes no types
    """What is put in front of a trainer class; see :func:`extended`."""

    options: TrainingOptions
    placement: Placement
    stop: StopRequest
    clip_norm: float
    disable_tta = False

    # nnU-Net records these arguments by their names
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        with warnings.catch_warnings():
            # a distributed trainer takes CUDA for granted, and makes a scaler for it
            warnings.filterwarnings("ignore", message=".*GradScaler is enabled, but CUDA is not available")
            with contextlib.redirect_stdout(io.StringIO()):
                super().__init__(plans, configuration, fold, dataset_json, device)
        self.device = self.placement.device
        self.my_init_kwargs["device"] = self.device
        for name, chosen in (
            ("num_epochs", self.options.epochs),
            ("initial_lr", self.options.lr),
            ("num_iterations_per_epoch", self.options.iterations_per_epoch),
            ("num_val_iterations_per_epoch", self.options.validation_iterations),
        ):
            if chosen is not None:
                setattr(self, name, chosen)
        self.accumulation_steps = self.options.gradient_accumulation_steps or 1
        on_cuda = self.device.type == "cuda"
        self.amp = on_cuda if self.options.amp is None else self.options.amp
        self.grad_scaler = torch.GradScaler("cuda") if on_cuda and self.amp else None
        # what nnU-Net would save every so many epochs is saved here after each
        self.save_every = self.num_epochs + 1
        self._split: Any = None

    # batch and processes

    def _set_batch_size_and_oversample(self) -> None:
        manager = self.configuration_manager
        if self.options.batch_size is not None:
            manager.configuration["batch_size"] = self.options.batch_size
        ranks = self.placement.world_size
        if manager.batch_size % ranks:
            raise SetupError(
                f"a batch of {manager.batch_size} cannot be shared by {ranks} processes: give a batch size of {ranks} "
                f"(or another multiple); with {max(2, self.accumulation_steps)} or more gradient accumulation steps, "
                "small batches still make large steps",
                settings=("batch_size", "gradient_accumulation_steps"),
            )
        self.is_ddp = self.placement.distributed
        try:
            super()._set_batch_size_and_oversample()
        finally:
            self.is_ddp = False

    def initialize(self) -> None:
        # nnU-Net would wrap the network for the GPU with the number of the global rank
        self.is_ddp = False
        try:
            super().initialize()
        finally:
            self.is_ddp = self.placement.distributed
        asked = self.options.lr
        if asked is not None and not np.isclose(self.optimizer.defaults.get("lr", asked), asked):
            raise SetupError(
                f"{type(self).__name__} sets its own learning rate ({self.optimizer.defaults['lr']}), "
                f"which asking for {asked} cannot change: leave the rate to it, or take another trainer",
                settings=("lr", "trainer"),
            )
        if self.placement.distributed:
            self._distribute()
        if note := _differences_from_one_batch(self):
            self.tell(f"NOTE: {note}")

    def _distribute(self) -> None:
        on_cuda, network = self.device.type == "cuda", self.network
        if on_cuda:
            convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            network = convert(network)
        self.network: Any = DistributedDataParallel(
            network,
            device_ids=[self.device.index] if on_cuda else None,
            # buffers are constants here (statistics of batch normalisation are shared by SyncBatchNorm), and
            # sending them in each pass would lock up a validation in which ranks have unequal numbers of cases
            broadcast_buffers=False,
        )
        # the loss of a distributed training gathers batch Dice, and leaves no output without a gradient
        self.loss = self._build_loss()

    def do_split(self) -> Any:
        # one process writes the file that all others read
        if self.is_ddp and self._split is None:
            if self.local_rank == 0:
                super().do_split()
            torch.distributed.barrier()
        self._split = super().do_split()
        return self._split

    def plot_network_architecture(self) -> None:
        # nnU-Net reports the missing optional package as if something had gone wrong
        if importlib.util.find_spec("hiddenlayer") is not None:
            super().plot_network_architecture()

    # steps

    @property
    def _own_step(self) -> bool:
        return bool(self.accumulation_steps > 1 or self.amp != (self.device.type == "cuda"))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._stop_if_asked()
        if not self._own_step:
            return super().train_step(batch)  # type: ignore[no-any-return]
        return accumulated_step(self, batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._stop_if_asked()
        if self.device.type == "cuda":
            # nnU-Net enters autocast here whatever was asked for
            with contextlib.nullcontext() if self.amp else without_autocast(self.network, "cuda"):
                return super().validation_step(batch)  # type: ignore[no-any-return]
        with autocast(self.device, self.amp):
            return super().validation_step(batch)  # type: ignore[no-any-return]

    # epochs

    def on_epoch_start(self) -> None:
        if self.options.seed is not None:
            seed_everything(self.options.seed, epoch=self.current_epoch, rank=self.placement.rank)
        super().on_epoch_start()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.current_epoch < self.num_epochs:
            self.save_latest()
        if self.placement.rank == 0:
            _log.info("%s", last_epoch(self))

    def on_train_start(self) -> None:
        super().on_train_start()
        self.tell(_beginning(self))

    # lines

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        # the terminal has lines of our own; plans, tables and steps stay in the log
        said = " ".join(map(str, args)).lower()
        console = also_print_to_console and any(word in said for word in _TOLD)
        if self.placement.rank == 0 or console:
            super().print_to_log_file(*args, also_print_to_console=console, add_timestamp=add_timestamp)

    def tell(self, line: str) -> None:
        """Write a line into the log, and to the terminal."""
        if self.placement.rank == 0:
            super().print_to_log_file(line, also_print_to_console=False)
            _log.info("%s", line)

    # validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        name = f"validation of fold {'full' if self.fold == 'all' else self.fold}"
        with validation_as_asked(self, CaseCounter(self.tell, name), mirrored=not self.disable_tta):
            super().perform_actual_validation(save_probabilities)

    # checkpoints

    def save_checkpoint(self, filename: str) -> None:
        self._save(Path(filename), epochs_done=self.current_epoch + 1)

    def save_latest(self) -> None:
        """Save the state from which the epoch ``current_epoch`` begins, or begins again."""
        self._save(Path(self.output_folder) / LATEST, epochs_done=self.current_epoch)

    def _save(self, path: Path, *, epochs_done: int) -> None:
        if self.placement.rank or self.disable_checkpointing:
            return
        log = {key: values[:epochs_done] for key, values in self.logger.get_checkpoint().items()}
        write_checkpoint(
            path,
            {
                # nnU-Net's own entries
                "network_weights": unwrapped(self.network).state_dict(),
                "optimizer_state": self.optimizer.state_dict(),
                "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
                "logging": log,
                "_best_ema": self._best_ema,
                "current_epoch": epochs_done,
                "init_args": self.my_init_kwargs,
                "trainer_name": type(self).__name__,
                "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
                RECORD_KEY: self.record(),
            },
        )
        settle(path.parent)

    def record(self) -> dict[str, Any]:
        """Return what this training runs with; what hangs on the device is left open unless it was asked for.

        A training may go on elsewhere, where another ``amp`` is the default.
        """
        return {
            **replace(
                self.options,
                batch_size=self.configuration_manager.batch_size,
                lr=self.initial_lr,
                epochs=self.num_epochs,
                iterations_per_epoch=self.num_iterations_per_epoch,
                gradient_accumulation_steps=self.accumulation_steps,
            ).record(),
            "world_size": self.placement.world_size,
            "device": str(self.device),
            "mixed_precision": self.amp,
        }

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        # nnU-Net reads it again, and would run code from it
        read_checkpoint(Path(filename_or_checkpoint))
        super().load_checkpoint(filename_or_checkpoint)

    # stopping

    def _stop_if_asked(self) -> None:
        stop = self.stop.requested
        if self.is_ddp:
            # the processes see a signal at different moments, and have to leave at the same step
            flag = torch.tensor(int(stop), device=self.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            stop = bool(flag.item())
        if stop:
            self.save_latest()
            saved = "nothing is saved" if self.disable_checkpointing else f"saved {Path(self.output_folder) / LATEST}"
            raise TrainingStopped(
                f"stopped in epoch {self.current_epoch + 1} of {self.num_epochs}: {saved}",
                settings=() if self.disable_checkpointing else ("resume",),
                number=self.stop.number,
            )

    def finish_dataloaders(self) -> None:
        """End the processes that prepare batches."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                _finish(loader)


def _finish(loader: Any) -> None:
    """End a loader's processes; those that do not leave are left to be killed.

    They share locks with it, and who died with one does not give it back.
    """
    finishing = threading.Thread(target=loader._finish, daemon=True)
    finishing.start()
    finishing.join(BOUND_S)


def extended(
    trainer_class: type[nnUNetTrainer], options: TrainingOptions, placement: Placement, stop: StopRequest | None = None
) -> type[Any]:
    """Return a subclass of a trainer, of the same name, that follows the options.

    It accumulates gradients, runs distributed on NCCL or gloo with several processes on several
    nodes, saves ``checkpoint_latest`` after every epoch and on request, writes checkpoints whole or
    not at all and with the options in them, and logs one line an epoch.

    Args:
        trainer_class: nnU-Net's trainer, or one derived from it.
        options: What differs from the trainer and the plans.
        placement: Where this process runs; for several processes the group exists already.
        stop: The wish to stop, seen before every step.

    Raises:
        SetupError: The trainer has a training step of its own, and an option needs ctseg's.
    """
    owner = next(cls for cls in trainer_class.__mro__ if "train_step" in vars(cls))
    clip_norm = GRADIENT_NORM_LIMITS.get(owner.__name__)
    default_amp = placement.device.type == "cuda"
    needs_own_step = (options.gradient_accumulation_steps or 1) > 1 or (
        options.amp is not None and options.amp != default_amp
    )
    if clip_norm is None and needs_own_step:
        raise SetupError(
            f"{trainer_class.__name__} has a training step of its own ({owner.__name__}), which knows neither "
            "gradient accumulation nor a choice of precision: ask for neither; where a training goes on that had "
            f"them, ask for 1 gradient accumulation step and mixed precision {'on' if default_amp else 'off'}",
            settings=("gradient_accumulation_steps", "amp"),
        )
    members = {
        "__module__": trainer_class.__module__,
        "__qualname__": trainer_class.__qualname__,
        "__doc__": trainer_class.__doc__,
        "options": options,
        "placement": placement,
        "stop": stop or StopRequest(),
        "clip_norm": clip_norm or 0.0,
    }
    return type(trainer_class.__name__, (_Extension, trainer_class), members)


def _beginning(trainer: _Extension) -> str:
    """Return in a line what a training does."""
    cases, validated = trainer._split
    plans = trainer.configuration_manager
    return (
        f"fold {'full' if trainer.fold == 'all' else trainer.fold}: {len(cases)} cases to train on, {len(validated)} "
        f"to validate with; epochs of {trainer.num_iterations_per_epoch} steps with {plans.batch_size} patches of "
        f"{' x '.join(map(str, plans.patch_size))} on {trainer.device}; the log is {trainer.log_file}"
    )


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network without the wrappers of distribution and compilation."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def seed_everything(seed: int, *, epoch: int = 0, rank: int = 0) -> None:
    """Seed Python, numpy and torch, differently for each epoch and rank."""
    mixed = int(np.random.SeedSequence([seed, epoch + 1, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 (nnU-Net draws from the global generator)
    torch.manual_seed(mixed)


def _differences_from_one_batch(trainer: _Extension) -> str | None:
    """Return in what accumulated batches differ from one large batch; None where they do not."""
    steps, size = trainer.accumulation_steps, trainer.configuration_manager.batch_size
    if steps == 1:
        return None
    reasons = []
    if trainer.configuration_manager.batch_dice:
        reasons.append("batch_dice is true, so the Dice loss is that of each small batch")
    if trainer.label_manager.has_ignore_label:
        reasons.append("an ignore label leaves batches with different numbers of voxels")
    if any(isinstance(module, _BatchNorm) for module in trainer.network.modules()):
        reasons.append("batch normalisation sees the small batches")
    if not reasons:
        return None
    return f"{steps} accumulated batches of {size} are not exactly one batch of {steps * size}: {'; '.join(reasons)}"
