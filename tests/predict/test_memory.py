"""The memory that cases in flight may take together."""

import threading

import numpy as np
import pytest

from ctseg.files.volume import volume_from_array
from ctseg.nnunet.plans import spec_from_plans
from ctseg.predict import memory
from ctseg.predict.memory import MemoryBudget, available_bytes, estimated_bytes
from tests.support.nnunet_plans import make_dataset, make_plans


def test_a_case_waits_until_it_fits_and_one_alone_always_passes():
    budget = MemoryBudget(100)
    entered, leave = threading.Event(), threading.Event()

    def second() -> None:
        with budget.reserved(50):
            entered.set()

    with budget.reserved(1000):  # more than there is, but alone
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(60)
    thread.join()
    with budget.reserved(40), budget.reserved(60):
        leave.set()
    assert leave.is_set()


def test_the_estimate_grows_with_the_classes_times_the_patch_and_not_times_the_scan():
    plans = make_plans(patch_size=(16, 32, 32), spacing=(1.0, 1.0, 1.0))
    few, many = (
        spec_from_plans(
            plans, make_dataset({f"l{i}" if i else "background": i for i in range(n)}), "3d_fullres",
            name="m", mirror_axes=(),
        )
        for n in (2, 102)
    )  # fmt: skip
    volume = volume_from_array(np.ones((64, 40, 50), np.int16), np.eye(4))
    growth = estimated_bytes(volume, many) - estimated_bytes(volume, few)
    assert growth == 100 * 16 * 40 * 50 * 4 * 2
    assert estimated_bytes(volume, few) > volume.voxels.nbytes


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:  5000 kB\n", "max\n", 5000 << 10),
        ("MemTotal: 9 kB\nMemAvailable:  5000 kB\n", "2048000\n", 2048000),
        ("MemTotal: 9 kB\nMemAvailable:  5000 kB\n", "9000000\n", 5000 << 10),
        ("MemAvailable:  5000 kB\n", None, 5000 << 10),
        (None, None, 8 << 30),
    ],
)
def test_available_is_the_smaller_of_what_is_free_and_the_containers_limit(
    meminfo, limit, expected, tmp_path, monkeypatch
):
    for name, text in (("_MEMINFO", meminfo), ("_CGROUP_LIMIT", limit)):
        if text is not None:
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert available_bytes() == expected
