"""What a case of a recipe is estimated to take, beside what real processes took."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.predict.test_estimate import HIGHEST, LOWEST
from tests.support.measured_recipe import RECIPES

IN_EVERY_RUN = "union of two spacings"
NAMES = [name for name in RECIPES if not name.startswith("large")]

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="NEEDS LINUX: measures by /proc")


def measured(name: str, *words: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.measured_recipe", name, *words],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True, timeout=550,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {words}: estimated {found['estimate'] >> 20} MiB, measured {found['peak'] >> 20} MiB")
    return found


@pytest.mark.parametrize(
    "name", [name if name == IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.full) for name in NAMES]
)
def test_the_estimate_lies_near_the_peak_of_a_real_process(name: str) -> None:
    found = measured(name)
    assert LOWEST <= found["estimate"] / found["peak"] <= HIGHEST, found


@pytest.mark.full
def test_an_ensemble_takes_what_its_larger_member_takes_and_little_more() -> None:
    """For a further member its prepared scan and two slabs, which together are as deep as the patch."""
    name = "ensemble of two"
    alone = [measured(name, "--alone", member)["peak"] for member in ("a", "b")]
    _, of_b = RECIPES[name].scan, RECIPES[name].spec_of("b")
    planes, rows, columns = (
        round(size * before / after)
        for size, before, after in zip((160, 400, 400), (1.5, 0.8, 0.8), of_b.spacing_mm, strict=True)
    )
    further = 4 * (planes + of_b.num_heads * of_b.patch_size[0]) * rows * columns
    assert measured(name)["peak"] <= 1.02 * (max(alone) + further)
