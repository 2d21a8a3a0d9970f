"""How a folder of cases is segmented."""

from dataclasses import dataclass

from ctseg.predict.parts import Part
from ctseg.predict.segment import WindowOptions


@dataclass(frozen=True)
class BatchOptions:
    """How a folder is segmented.

    Attributes:
        tile_step_size: Step between windows as a fraction of the patch, in (0, 1].
        mirroring: Average over mirrored patches, if the model says that the client does this.
        continue_prediction: Skip cases that are done: the same scan, the same model, the same options.
        save_probabilities: Write ``<case>.npz`` beside each label map.
        overwrite: Replace label maps that ctseg has not made, or that were changed since.
        case_timeout_s: Longest time from when a case's first window is sent to when its last is back; None: no limit.
        memory_bytes: What the cases in flight may take together; None: half of what is available.
        part: Which cases of the list are done; all by default.
        recursive: Whether scans in sub-folders count, see :func:`ctseg.files.cases.find_cases`.
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

    @property
    def window_options(self) -> WindowOptions:
        """What of this is about windows."""
        return WindowOptions(self.tile_step_size, self.mirroring, self.case_timeout_s)
