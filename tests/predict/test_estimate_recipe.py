"""What a case of a recipe is estimated to take, beside what real processes took."""

from dataclasses import replace
from pathlib import Path

import pytest

from ctseg.files.geometry import Geometry
from ctseg.files.volume import read_volume_header
from ctseg.predict.estimate import WindowLoad
from ctseg.predict.segment import batches_ahead
from tests.support.measured_case import HIGHEST, LOWEST, InstantPredictor, measured_in_processes, write_scan
from tests.support.measured_recipe import RECIPES, segmenter_of

IN_EVERY_RUN = "union of two spacings"
NAMES = [name for name in RECIPES if not name.startswith("large")]

by_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="NEEDS LINUX: measures by /proc")


def measured(name: str, *words: str) -> dict[str, int]:
    return measured_in_processes("tests.support.measured_recipe", name, *words)


@by_proc
@pytest.mark.parametrize(
    "name", [name if name == IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.full) for name in NAMES]
)
def test_the_estimate_lies_near_the_peak_of_a_real_process(name: str) -> None:
    found = measured(name)
    assert LOWEST <= found["estimate"] / found["peak"] <= HIGHEST, found


@by_proc
@pytest.mark.full
def test_an_ensemble_takes_what_its_larger_member_takes_and_little_more() -> None:
    """For a further member its prepared scan and two slabs, which together are as deep as the patch."""
    name = "ensemble of two"
    alone = [measured(name, "--alone", member)["peak"] for member in ("a", "b")]
    of_b = RECIPES[name].spec_of("b")
    planes, rows, columns = (
        round(size * before / after)
        for size, before, after in zip((160, 400, 400), (1.5, 0.8, 0.8), of_b.spacing_mm, strict=True)
    )
    further = 4 * (planes + of_b.num_heads * of_b.patch_size[0]) * rows * columns
    assert measured(name)["peak"] <= 1.02 * (max(alone) + further)


def test_an_ensemble_without_common_planes_is_estimated_with_the_whole_volume(tmp_path: Path) -> None:
    small = RECIPES["ensemble of two"].scan
    write_scan(tmp_path / "in", small, (40, 40, 20))
    header = read_volume_header([tmp_path / "in" / "case_0000.nii.gz"], "SimpleITKIO")
    whole = replace(header, geometry=Geometry((400, 512, 512), header.geometry.affine_ras))

    def estimated(name: str, heads: int) -> int:
        shape = replace(RECIPES[name], scan=replace(small, heads=heads))
        segmenter = segmenter_of(shape, shape.predictors())
        try:
            return segmenter.estimate(whole, saves_probabilities=False).peak_bytes
        finally:
            segmenter.close()

    probabilities = 4 * 59 * 400 * 512 * 512
    assert estimated("ensemble of two", 59) < probabilities / 4
    assert estimated("ensemble of whole volumes", 59) > probabilities


@pytest.mark.parametrize(("in_flight", "batch"), [(1, 1), (2, 1), (2, 4), (4, 3), (6, 8)])
def test_networks_in_step_have_as_many_windows_on_their_way_as_one_alone(in_flight: int, batch: int) -> None:
    predictor = InstantPredictor(RECIPES["union"].spec_of("a"))
    predictor.max_in_flight, predictor.max_batch_size = in_flight, batch
    assert batches_ahead(predictor, 0) == (2 * in_flight, batch)
    alone = WindowLoad(2 * in_flight * batch, in_flight * batch, mirrored=False, tile_step_size=0.5)
    for beside in (1, 2, 3):
        batches, windows = batches_ahead(predictor, beside)
        assert batches * windows <= alone.shared(beside).waiting
        assert (1 + beside) * batches * windows <= max(2 * in_flight * batch, 1 + beside)
        assert windows <= batch
