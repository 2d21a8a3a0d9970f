"""The memory that cases in flight may take together."""

import threading

import numpy as np

from ctseg.files.volume import volume_from_array
from ctseg.nnunet.plans import spec_from_plans
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
    assert entered.wait(5)
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


def test_what_is_available_is_less_than_all_there_is():
    assert 0 < available_bytes() < 1 << 50
