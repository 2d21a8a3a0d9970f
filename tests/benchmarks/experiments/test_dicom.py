"""What is timed reads the same voxels, those of the scan."""

from typing import get_args

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.budgets import budgets_of
from benchmarks.experiments.dicom_files import write_series
from benchmarks.experiments.dicom_reading import read_by
from benchmarks.page import page_of
from benchmarks.results import BenchmarkResult, DicomEncoding, DicomReading, Machine


@pytest.mark.parametrize("encoding", get_args(DicomEncoding))
def test_both_programs_read_the_scan(tmp_path, encoding):
    voxels = np.random.default_rng(0).integers(-1024, 3000, (5, 12, 16)).astype(np.int16)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    write_series(tmp_path / "scan.nii.gz", tmp_path / "series", encoding)
    files = sorted((tmp_path / "series").iterdir())
    by_ctseg = read_by("ctseg", files)
    assert by_ctseg is not None
    np.testing.assert_array_equal(by_ctseg[0], voxels)
    by_pydicom = read_by("pydicom", files)
    if by_pydicom is None:
        assert encoding == "JPEG lossless"
    else:
        np.testing.assert_array_equal(by_pydicom[0], voxels)


def test_a_row_without_a_reference_promises_nothing():
    fields = {"shape": (5, 12, 16), "files_mb": 1.0, "ctseg_s": (3.0, 2.0), "ctseg_headers_s": (0.5, 0.4)}
    rows = (
        DicomReading(encoding="uncompressed", pydicom_s=(1.0, 1.25), **fields),
        DicomReading(encoding="JPEG 2000 lossless", pydicom_s=(0.8, 0.9), **fields),
        DicomReading(encoding="JPEG lossless", pydicom_s=(), **fields),
    )
    budgets = budgets_of(None, (), (), (), (), dicom=rows)
    assert [(budget.figure, budget.met) for budget in budgets] == [("2.00 x", True), ("2.50 x", False)]
    machine = Machine(system="Linux", processor="a CPU", cpus=2, memory_gb=25.0, busy_cpus=0.0, python="3.11")
    result = BenchmarkResult(mode="tiny", started="2026-11-28", machine=machine, versions={}, scans=(), dicom=rows)
    page = page_of(result)
    assert "| uncompressed | 5x12x16 | 1 | 1.00 | 2.00 | 0.40 | 2.00 | 2 |" in page
    assert "| JPEG lossless | 5x12x16 | 1 | no decoder | 2.00 | 0.40 |  | 2 |" in page
