"""A series in DICOM, read once by ctseg or by pydicom.

Runs as ``python -m benchmarks.experiments.dicom_reading`` with one job of JSON as its argument, and prints one line of
JSON.
"""

import hashlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 (its users' name for it)
from pydicom import dcmread
from pydicom.pixels.decoders.base import get_decoder

from benchmarks.results import DicomProgram
from ctseg.documents import Document
from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.pixels import read_series

THREADS = 2
"""That pydicom reads with."""


class ReadingJob(Document):
    """What to read.

    Attributes:
        folder: A file a slice, named in their order; nothing else.
        program: By which.
    """

    folder: str
    program: DicomProgram


class ReadingResult(Document):
    """What came of it.

    Attributes:
        seconds: From the names of the files to the volume in HU.
        headers_s: Of these, what ctseg took to find the series; 0 for pydicom.
        digest: Of the voxels; empty: pydicom has no decoder here.
    """

    seconds: float
    headers_s: float
    digest: str


def main() -> int:
    """Run the job in the first argument."""
    job = ReadingJob.model_validate_json(sys.argv[1])
    files = sorted(Path(job.folder).iterdir())
    sitk.Version()  # type: ignore[no-untyped-call]  # loaded before the clock runs
    began = time.perf_counter()
    found = read_by(job.program, files)
    voxels, headers_at = found if found is not None else (None, began)
    seconds = time.perf_counter() - began
    digest = "" if voxels is None else hashlib.sha256(np.ascontiguousarray(voxels, np.int16).tobytes()).hexdigest()
    print(ReadingResult(seconds=seconds, headers_s=headers_at - began, digest=digest).model_dump_json(), flush=True)
    return 0


def read_by(program: DicomProgram, files: list[Path]) -> tuple[npt.NDArray[Any], float] | None:
    """Return the voxels (z, y, x) in HU, and when headers were read; None: pydicom has no decoder here.

    Args:
        program: Which reads.
        files: A file a slice, in their order.
    """
    return _by_ctseg(files) if program == "ctseg" else _by_pydicom(files)


def _by_ctseg(files: list[Path]) -> tuple[npt.NDArray[Any], float]:
    (series,) = find_series(files).series
    headers_at = time.perf_counter()
    return read_series(series, "SimpleITKIO").voxels, headers_at


def _by_pydicom(files: list[Path]) -> tuple[npt.NDArray[Any], float] | None:
    began = time.perf_counter()
    first = dcmread(files[0])
    if (
        first.file_meta.TransferSyntaxUID.is_encapsulated
        and not get_decoder(first.file_meta.TransferSyntaxUID).is_available
    ):
        return None
    voxels = np.empty((len(files), first.Rows, first.Columns), np.int16)

    def read(index: int) -> None:
        dataset = dcmread(files[index])
        stored = dataset.pixel_array.astype(np.int32)
        voxels[index] = stored * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(len(files))))
    return voxels, began


if __name__ == "__main__":
    sys.exit(main())
