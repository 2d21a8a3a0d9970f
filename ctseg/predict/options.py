"""How a folder of cases is segmented."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Literal, get_args

from ctseg.files.dicom.choosing import SeriesRules
from ctseg.predict.parts import Part
from ctseg.predict.segment import WindowOptions
from ctseg.presentation import LabelPresentation

OutputFormat = Literal["nifti", "dicom_seg", "dicom_rtstruct", "dicom_sr"]
"""``nifti`` is the label map, in the ending that the model names."""
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
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
        series: Which DICOM series of a folder are taken.
        case_name_from: What names of DICOM cases are made of: DICOM keywords, which may name a patient, and
            ``folder`` for the place in the input; by default study and series number, with digests of their UIDs.
        dicom_rows: In which order a model that turns no axes sees the rows of DICOM slices, that of its training scans:
            ``down``, as they are stored and as SimpleITK writes them to NIfTI; or ``up``, as dcm2niix does.
        prev_stage_predictions: Folder of the first stage's label maps, for the second stage of a cascade by itself.
        output_formats: What is written of each case; None: the label map, and of a DICOM series a segmentation too.
            ``dicom_sr`` brings ``dicom_seg`` with it, to which it refers.
        segmentation_type: Of DICOM segmentations: ``binary``, a frame for each label and slice; or ``labelmap``, a
            frame for each slice, which is smaller and younger.
        codes: How labels are called in DICOM objects, by name; goes before what the spec says.
        agreement: Whether the outcome of a case says how far the folds agree on it, for models that have votes; None:
            where whole scans are sent, since nothing travels for it then.
        codes_required: Refuse a model with labels that have no codes, where DICOM objects are written.

    Raises:
        ValueError: A number is out of its range, or a format or type is unknown.
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
    series: SeriesRules = SeriesRules()  # noqa: RUF009 (frozen)
    case_name_from: tuple[str, ...] = ()
    dicom_rows: Literal["down", "up"] = "down"
    prev_stage_predictions: Path | None = None
    output_formats: tuple[OutputFormat, ...] | None = None
    segmentation_type: Literal["binary", "labelmap"] = "binary"
    codes: Mapping[str, LabelPresentation] = field(default_factory=dict)
    codes_required: bool = False
    agreement: bool | None = None

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
        if self.output_formats is not None and not (
            self.output_formats and set(self.output_formats) <= set(OUTPUT_FORMATS)
        ):
            raise ValueError(f"expected some of the formats {OUTPUT_FORMATS}, found {self.output_formats}")
        if self.dicom_rows not in ("down", "up"):
            raise ValueError(f"expected rows of DICOM slices down or up, found {self.dicom_rows!r}")
        if self.segmentation_type not in ("binary", "labelmap"):
            raise ValueError(f"expected segmentations of type binary or labelmap, found {self.segmentation_type!r}")

    @property
    def window_options(self) -> WindowOptions:
        """What of this is about windows."""
        return WindowOptions(self.tile_step_size, self.mirroring, self.case_timeout_s, self.agreement)
