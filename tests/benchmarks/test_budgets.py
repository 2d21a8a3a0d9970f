"""Budgets are ratios to a reference that was measured beside them."""

import pytest

from benchmarks.budgets import budgets_of
from benchmarks.results import Floor, Micro, ProgramRun, ReplayRun


def program_run(**changes):
    return ProgramRun(**{"wall_s": 9.0, "cpu_s": 3.0, "client_cpu_s": 2.5, "peak_mb": 100.0, **changes})


def test_budgets_are_ratios_to_the_reference():
    floor = Floor(
        model="sleeps", sleep_ms=100.0, scans=2, megavoxels=4.0, windows=40,
        replays=(ReplayRun(concurrency=2, batch=4, wall_s=4.0), ReplayRun(concurrency=2, batch=4, wall_s=5.0)),
        folders=(program_run(folder_s=4.1), program_run(folder_s=4.3), program_run(folder_s=8.0)),
        startup_client_cpu_s=0.5,
    )  # fmt: skip
    assert floor.ratio == pytest.approx(4.3 / 4.0)
    assert floor.client_cpu_s_per_megavoxel == pytest.approx(2.0 / 4.0)
    micro = Micro(
        function="export", classes=2, source_shape=(4, 4, 4), target_shape=(8, 8, 8),
        nnunet_s=(9.0, 8.0), ctseg_s=(0.2, 0.25), nnunet_extra_mb=10, ctseg_extra_mb=11,
    )  # fmt: skip
    found = {budget.what: (budget.figure, budget.met) for budget in budgets_of(None, [], [floor], [micro], [])}
    assert found["logits to labels, 8x8x8, 2 classes"] == ("40.0 x", True)
    assert found["memory of logits to labels, 8x8x8, 2 classes"] == ("11 against 10 MiB", False)
    assert found["folder of 2 scans, sleeps"] == ("1.075 x", False)
