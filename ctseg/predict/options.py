"""How a folder of cases is segmented."""

from dataclasses import dataclass
from pathlib import Path
from threading import TIMEOUT_MAX

from ctseg.predict.parts import Part
from ctseg.predict.segment import WindowOptions

SMALLEST_TILE_STEP_SIZE = 0.01
"""At a hundredth of the patch a scan twice as long as the patch has a million windows. nnU-Net would begin."""
_MOST_MEMORY_BYTES = 1 << 50


@dataclass(frozen=True)
class BatchOptions:
    """How a folder is segmented.

    Attributes:
        tile_step_size: Step between windows as a fraction of the patch, in [0.01, 1].
        mirroring: Average over mirrored patches, if the model says that the client does this.
        continue_prediction: Skip cases that are done: the same scan, the same model, the same options.
        save_probabilities: Write ``<case>.npz`` beside each label map.
        overwrite: Replace label maps that ctseg has not made, or that were changed since.
        case_timeout_s: Longest time from when a case's first window is sent to when its last is back; None: no limit.
        memory_bytes: What the cases in flight may take together, and any of them; None: half of what is available
            together, and all of it alone.
        part: Which cases of the list are done; all by default.
        recursive: Whether scans in sub-folders count, see :func:`ctseg.files.cases.find_cases`.
        prev_stage_predictions: Folder of the first stage's label maps, for the second stage of a cascade by itself.

    Raises:
        ValueError: A number is out of its range.
    """

    tile_step_size: float = 0.5
    mirroring: bool = True
    continue_prediction: bool = False
    save_probabilities: bool = False
    overwrite: bool = False
    case_timeout_s: float | None = None
    memory_bytes: int | None = None
    part: Part = Part()  # noqa: RUF009 (frozen)
    recursive: bool = False
    prev_stage_predictions: Path | None = None

    def __post_init__(self) -> None:
        if not SMALLEST_TILE_STEP_SIZE <= self.tile_step_size <= 1:
            raise ValueError(
                f"expected a step between windows of {SMALLEST_TILE_STEP_SIZE} to 1 of the patch, found "
                f"{self.tile_step_size}: smaller steps give a million windows and more"
            )
        if self.case_timeout_s is not None and not 0 < self.case_timeout_s <= TIMEOUT_MAX:
            raise ValueError(f"expected a positive time limit of a case, found {self.case_timeout_s} s")
        if self.memory_bytes is not None and not 0 < self.memory_bytes <= _MOST_MEMORY_BYTES:
            raise ValueError(f"expected memory of 1 byte to 1 PiB, found {self.memory_bytes:.3g} bytes")

    @property
    def window_options(self) -> WindowOptions:
        """What of this is about windows."""
        return WindowOptions(self.tile_step_size, self.mirroring, self.case_timeout_s)
