"""The memory that writing one case's DICOM object takes, in a process of its own.

``python -m tests.support.measured_writing FORMAT LABELS`` prints what was estimated and what was taken, in bytes.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ctseg.files.dicom.object_kinds import SegmentationType
from ctseg.files.dicom.results import DicomResult, Segment
from ctseg.files.dicom.segmentation import write_segmentation
from ctseg.files.dicom.structure_set import write_structure_set
from ctseg.predict.case_files import CaseFiles
from ctseg.predict.contract import ScanContract
from ctseg.predict.options import BatchOptions, OutputFormat
from ctseg.predict.outcomes import MadeBy, Options
from tests.support.dicom_results import LIVER, MAKER, write_ct
from tests.support.dicom_series import ct_series
from tests.support.measured_case import status_bytes

SHAPE = (90, 512, 512)


def bands(labels: int) -> np.ndarray:
    """Return a label map with every label in every slice."""
    found = np.zeros(SHAPE, np.uint8)
    for label in range(labels):
        found[:, label * SHAPE[1] // labels : (label + 1) * SHAPE[1] // labels - 1] = label + 1
    return found


def measured(kind: str, labels: int, root: Path) -> dict[str, int]:
    small = write_ct(root / "ct", ct_series((SHAPE[0], 4, 4)))  # its headers are all that is read
    series = replace(small, rows=SHAPE[1], columns=SHAPE[2])
    segments = tuple(Segment(label, f"label{label}", (label,), LIVER) for label in range(1, labels + 1))
    form: SegmentationType = "LABELMAP" if kind == "labelmap" else "BINARY"
    result, voxels = DicomResult(series, segments, MAKER, form), bands(labels)
    write = write_structure_set if kind == "dicom_rtstruct" else write_segmentation
    write(root / "first.dcm", np.where(np.arange(SHAPE[2]) == 0, voxels, 0), result)  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status_bytes("VmRSS")
    write(root / "measured.dcm", voxels, result)
    return {"estimate": estimated(kind, segments), "peak": status_bytes("VmHWM") - before}


def estimated(kind: str, segments: tuple[Segment, ...]) -> int:
    made_by = MadeBy(
        run="", model="", model_version="", spec_digest="", options=Options(tile_step_size=0.5, mirroring=True)
    )
    contract = ScanContract(
        name="", digest="", channels=("CT",), reader="SimpleITKIO", file_ending=".nii.gz",
        labels={segment.name: segment.values for segment in segments}, parity="proven", mirrors_in_graph=False,
    )  # fmt: skip
    options = BatchOptions(segmentation_type="labelmap" if kind == "labelmap" else "binary")
    format_: OutputFormat = "dicom_rtstruct" if kind == "dicom_rtstruct" else "dicom_seg"
    return CaseFiles(contract, options, made_by).writing_bytes(int(np.prod(SHAPE)), [format_])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), Path(folder))))
