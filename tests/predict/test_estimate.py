"""What a case is estimated to take, beside what real processes took."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from ctseg.errors import InputError
from ctseg.predict.estimate import WindowLoad, estimate_memory
from tests.support.measured_case import HIGHEST, LOWEST, SHAPES, Shape, measured_in_processes

IN_EVERY_RUN = "upsampled"
LOAD = WindowLoad(waiting=16, running=8, mirrored=False, tile_step_size=0.5)


def estimated(shape: Shape, tmp_path, load: WindowLoad = LOAD):
    from ctseg.files.volume import read_volume_header
    from tests.support.measured_case import write_scan

    if not (tmp_path / "in").exists():
        write_scan(tmp_path / "in", shape, shape.voxels)
    spec = shape.model_spec
    return estimate_memory(read_volume_header(sorted((tmp_path / "in").iterdir()), spec.reader), spec, load)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="NEEDS LINUX: measures by /proc")
@pytest.mark.parametrize(
    "name", [name if name == IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.full) for name in SHAPES]
)
def test_the_estimate_lies_near_the_peak_of_a_real_process(name):
    found = measured_in_processes("tests.support.measured_case", name)
    assert LOWEST <= found["estimate"] / found["peak"] <= HIGHEST, found


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="NEEDS LINUX: measures by /proc")
@pytest.mark.parametrize(("kind", "labels"), [("binary", 2), ("binary", 40), ("labelmap", 40), ("dicom_rtstruct", 40)])
def test_the_estimate_holds_what_writing_dicom_objects_takes(kind, labels):
    small = 32 << 20  # which estimates have beside it
    found = measured_in_processes("tests.support.measured_writing", kind, str(labels))
    assert found["peak"] <= found["estimate"] + small, found
    assert kind == "dicom_rtstruct" or found["estimate"] <= 3 * found["peak"], found


def test_the_estimate_grows_with_the_classes_times_the_patch_and_not_times_the_scan(tmp_path):
    shape = Shape((100, 100, 60), (0.977, 0.977, 3.27))
    few, many = (estimated(replace(shape, heads=heads), tmp_path).peak_bytes for heads in (10, 110))
    patch, plane = 32 * 64 * 64, 100 * 100
    # the windows that wait, the blender's ring, and the plane that the restorer keeps
    assert many - few == 4 * 100 * (16 * patch + 32 * plane + plane)


def test_a_scan_of_wrong_spacing_is_estimated_at_its_shape_for_the_network(tmp_path):
    found = estimated(Shape((40, 50, 30), (50.0, 50.0, 50.0)), tmp_path)
    assert found.network_shape == (459, 2559, 2047)
    assert found.network_spacing_mm == (3.27, 0.977, 0.977)
    assert 4 * prod(found.network_shape) < found.peak_bytes < 5 * prod(found.network_shape)


def test_a_scan_with_no_voxel_left_at_the_networks_spacing_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one voxel along each axis"):
        estimated(Shape((4, 4, 4), (0.01, 0.01, 0.01)), tmp_path)


def test_no_more_windows_are_counted_than_there_are(tmp_path):
    shape = Shape((64, 64, 32), (0.977, 0.977, 3.27), heads=50)
    one, many = (estimated(shape, tmp_path, replace(LOAD, waiting=waiting)).peak_bytes for waiting in (1, 100_000))
    assert one == many
