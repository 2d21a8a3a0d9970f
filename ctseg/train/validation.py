"""The final validation of a fold: nnU-Net's, with lines that say how far it has come, mirrored or not."""

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as NnunetTrainerModule

from ctseg.train.epochs import duration

_TELL_EVERY_S = 10.0


class CaseCounter:
    """Says how many cases of a validation are done, and how long the rest will take.

    Args:
        tell: Takes a line: of the first case, of the last one, and of others not more often than every ten seconds.
        name: What is validated.
    """

    def __init__(self, tell: Callable[[str], None], name: str) -> None:
        self._tell, self._name = tell, name
        self._begun = 0
        self._start = self._told = time.monotonic()

    def begin(self, case: str, cases: int) -> None:
        """Note that a case is begun, and so that all before it are done.

        Args:
            case: Its name.
            cases: How many there are.
        """
        now, done = time.monotonic(), self._begun
        self._begun += 1
        if not done:
            self._start = now
        elif self._begun < cases and now - self._told < _TELL_EVERY_S:
            return
        left = f", left {duration((now - self._start) / done * (cases - done))}" if done else ""
        self._tell(f"{self._name}: case {self._begun} of {cases}, {case}{left}")
        self._told = now


@contextlib.contextmanager
def validation_as_asked(trainer: Any, counter: CaseCounter, *, mirrored: bool) -> Iterator[None]:
    """Let a trainer's validation count its cases, say nothing of devices, and mirror only where this is asked for.

    Args:
        trainer: nnU-Net's; it is as before afterwards.
        counter: Sees each case.
        mirrored: Whether each case is also predicted mirrored (test-time augmentation).
    """
    dataset_class: Any = trainer.dataset_class
    axes = trainer.inference_allowed_mirroring_axes

    class Counted(dataset_class):  # type: ignore[misc]
        def load_case(self, identifier: str) -> Any:
            counter.begin(identifier, len(self.identifiers))
            return super().load_case(identifier)

    predictor: Any = NnunetTrainerModule.nnUNetPredictor

    class Quiet(predictor):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # without a GPU it prints that everything is not done on one
            with contextlib.redirect_stdout(io.StringIO()):
                super().__init__(*args, **kwargs)

    trainer.dataset_class, NnunetTrainerModule.nnUNetPredictor = Counted, Quiet
    if not mirrored:
        trainer.inference_allowed_mirroring_axes = None
    try:
        yield
    finally:
        NnunetTrainerModule.nnUNetPredictor = predictor
        trainer.dataset_class, trainer.inference_allowed_mirroring_axes = dataset_class, axes


def validation_told(folder: Path) -> str:
    """Return in a line what a validation has found.

    Args:
        folder: With nnU-Net's ``summary.json``.
    """
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    cases = len(summary["metric_per_case"])
    return f"mean Dice {summary['foreground_mean']['Dice']:.4f} of {cases} case{'s' if cases > 1 else ''}  ({file})"
