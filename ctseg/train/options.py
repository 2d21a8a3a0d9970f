"""What ``ctseg train`` lets one choose, for every trainer; recorded in each checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ctseg.nnunet.folds import Fold

RECORD_KEY = "ctseg_training"
"""Key of the record in nnU-Net's checkpoints."""


@dataclass(frozen=True)
class TrainingOptions:
    """Values that differ from what the plans and the trainer say; None leaves theirs.

    Attributes:
        batch_size: Patches in one forward pass over all ranks together.
        lr: Initial learning rate.
        epochs: Number of epochs.
        iterations_per_epoch: Optimizer steps in an epoch; validation takes a fifth of them, as in nnU-Net.
        gradient_accumulation_steps: Batches that make one optimizer step.
        amp: Mixed precision: float16 with loss scaling on CUDA (nnU-Net's default there),
            bfloat16 on the CPU (off by default). Recorded only where it was chosen.
        seed: Seeds every epoch; reproducible where ``nnUNet_n_proc_DA`` is 0.
    """

    batch_size: int | None = None
    lr: float | None = None
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    gradient_accumulation_steps: int | None = None
    amp: bool | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr", "epochs", "iterations_per_epoch", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, found {value}")

    @property
    def validation_iterations(self) -> int | None:
        """Validation batches after an epoch: nnU-Net's ratio of 50 to 250."""
        return None if self.iterations_per_epoch is None else max(1, round(self.iterations_per_epoch / 5))

    def record(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "TrainingOptions":
        """Return the options of a checkpoint; fields that this version does not know are left out."""
        return cls(**{field.name: record.get(field.name) for field in fields(cls)})

    def continued_from(self, recorded: "TrainingOptions") -> tuple["TrainingOptions", list[str]]:
        """Return the options for continuing a training, and a line for each that changes.

        What is not given now is what it was.
        """
        changes = []
        values = {}
        for field in fields(self):
            now, before = getattr(self, field.name), getattr(recorded, field.name)
            if now is None:
                values[field.name] = before
            elif before is not None and now != before:
                changes.append(f"{field.name}: {before} so far, {now} from here on")
        return replace(self, **values), changes


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
        resume: Continue from the most advanced checkpoint.
        overwrite: Begin anew where there is a training already.
        validation_only: Only segment the validation cases, with the final checkpoint.
        save_probabilities: Keep the validation's probabilities, which ensembles need.
        pretrained_weights: A file of weights to begin with.
        skip_validation: Do not segment the validation cases at the end.
        disable_tta: Do not mirror in the final validation.
        val_best: Validate with the checkpoint of the best moving average, not with the final one.
        disable_checkpointing: Save nothing; nothing can go on or be exported.
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
    skip_validation: bool = False
    disable_tta: bool = False
    val_best: bool = False
    disable_checkpointing: bool = False

    @property
    def begins_anew(self) -> bool:
        """Whether what was trained before is replaced."""
        return self.overwrite and not self.resume and not self.validation_only
