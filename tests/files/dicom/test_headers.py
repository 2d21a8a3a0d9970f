"""Which series a set of files holds: right, or refused by name with the measured figure."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.series import CtSeries, FoundDicom
from ctseg.files.geometry import Geometry
from tests.support.dicom_series import ct_series, write_series
from tests.support.dicom_traps import REFUSED, RIGHT


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def found_in(folder: Path, keywords: Sequence[str] = ()) -> FoundDicom:
    return find_series(files_in(folder), keywords=keywords)


def one_series(folder: Path) -> CtSeries:
    (series,) = found_in(folder).series
    return series


PROBLEMS = {
    "two reconstructions": "its 16 slices lie at 8 places, .* which differ in ConvolutionKernel: give each a series",
    "time points": "its 24 slices lie at 8 places, .* TemporalPositionIdentifier and AcquisitionNumber: give each",
    "missing slice": r"2.5 mm apart, but 5 mm from 107.5 to 112.5 mm .*: 1 slice is missing: copy the whole series",
    "changing step": r"2.5 mm apart, but 5 mm from 110 to 115 mm, 5 mm from 115 to 120 mm, .*: export it with equal",
    "gantry tilt": r"sheared by 14 degrees, .* 4.23 mm beside the normal .* 0.1 mm are allowed: have the series",
    "gantry tilt without the tag": r"sheared by 15 degrees, .* 4.53 mm beside .* 0.1 mm are allowed: have the series",
    "sheared by 0.6 degrees": r"sheared by 0.6 degrees, .* 0.183 mm beside .* 0.1 mm are allowed: have the series",
    "no positions": r"8 of 8 slices do not say where they lie \(ImagePositionPatient\): export",
    "truncated file": r"1 of 8 files: cut off \(660 of 960 bytes of voxels are there\): copy them again",
    "slice of another size": r"2 sizes \(7 of 24 x 20, 1 of 24 x 18 voxels\): give each size",
    "slice of another orientation": r"1 of 8 slices are turned against the others, by up to 1 degrees .*: give each",
    "slice of another spacing": r"voxels of 0.8 to 0.82 mm \(PixelSpacing\): give each spacing",
    "colour": r"8 of 8 files are in colour \(3 numbers a voxel.*: give the scan itself",
    "one slice without thickness": r"it has one slice, .* \(SpacingBetweenSlices, SliceThickness\): add",
    "names for positions": r"8 of 8 slices do not say where they lie \(ImagePositionPatient\): export",
}


@pytest.mark.parametrize("name", REFUSED)
def test_series_that_is_no_volume_is_refused_with_the_measured_figure(name: str, tmp_path: Path) -> None:
    REFUSED[name](tmp_path)
    series = one_series(tmp_path)
    assert series.problem is not None
    assert re.search(PROBLEMS[name], series.problem), series.problem
    assert "Doe" not in series.problem + series.label
    with pytest.raises(ValueError, match="has no grid"):
        series.geometry  # noqa: B018


@pytest.mark.parametrize("name", RIGHT)
def test_series_that_readers_get_wrong_lies_where_its_headers_say(name: str, tmp_path: Path) -> None:
    true = RIGHT[name](tmp_path)
    series = one_series(tmp_path)
    assert series.problem is None
    assert series.geometry.shape == true.hu.shape
    off_mm = series.geometry.distance_mm(Geometry(true.hu.shape, true.affine_ras))
    assert off_mm == pytest.approx(17.5 * np.tan(np.deg2rad(0.05)) / 2 if "sheared" in name else 0, abs=1e-9)
    assert len({slice_.sop_instance_uid for slice_ in series.slices}) in (1, len(series.slices))


def test_slices_keep_the_slopes_and_frames_of_their_own_places(tmp_path: Path) -> None:
    RIGHT["multi-frame"](tmp_path)
    series = one_series(tmp_path)
    assert [slice_.slope for slice_ in series.slices] == [1.0, 2.0, 0.5, 1.25, 1.5, 1.0, 0.75, 3.0]
    assert [slice_.intercept for slice_ in series.slices] == [-1024.0 - index for index in range(8)]
    assert [slice_.frame for slice_ in series.slices] == [1, 3, 5, 0, 7, 6, 2, 4]


def test_pipes_and_what_is_no_dicom_are_neither_waited_for_nor_lost(tmp_path: Path) -> None:
    write_series(tmp_path, ct_series().datasets)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.txt").write_text("Doe, Jane" * 100)
    found = found_in(tmp_path)
    assert [len(series.slices) for series in found.series] == [8]
    assert [path.name for path in found.others] == ["pipe", "text.txt"]
