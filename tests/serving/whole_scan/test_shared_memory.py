"""What whole scans take of /dev/shm, and what becomes of them where it is full."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.errors import InferenceFailedError, ServerUnavailableError, SetupError
from ctseg.serving.whole_scan.in_process import InProcessPredictor
from ctseg.serving.whole_scan.shared_memory import SharedMemoryUse, bytes_of_window
from tests.support.toy_models import PATCH, toy_patches, toy_spec

MB = 1 << 20


def test_half_of_what_is_free_is_for_calls_and_half_for_scans() -> None:
    memory = SharedMemoryUse(free=lambda: 100 * MB)
    assert memory.most_bytes == 50 * MB
    memory.hold(40 * MB)
    with pytest.raises(ServerUnavailableError, match=r"at most 50 MB of /dev/shm .* found 60 MB with this one"):
        memory.hold(20 * MB)
    memory.let_go(40 * MB)
    memory.hold(90 * MB)  # one by itself lies there already
    with pytest.raises(ServerUnavailableError, match="found 91 MB"):
        memory.hold(MB)
    memory.hold(8**3 * 2)  # what readiness sends


def test_a_call_that_others_leave_no_room_for_is_told_with_the_figures() -> None:
    free = [100 * MB]
    memory = SharedMemoryUse(free=lambda: free[0])
    with pytest.raises(InferenceFailedError, match="toy: one call takes 51 MB of shared memory, and all may take 50"):
        memory.take(51 * MB, "toy")
    free[0] = 29 * MB
    with pytest.raises(ServerUnavailableError, match=r"toy: one call takes 30 MB of shared memory.* has 29 MB free"):
        memory.take(30 * MB, "toy")
    memory.take(20 * MB, "toy")
    memory.give_back(20 * MB)
    free[0] = 0
    memory.take(20 * MB, "toy")  # Triton has kept what it took


def test_kept_answers_leave_room_for_the_largest_call_of_any_network() -> None:
    memory = SharedMemoryUse(100 * MB, free=lambda: 200 * MB)
    memory.expect(70 * MB)
    for size, is_kept in ((20 * MB, True), (20 * MB, False)):
        memory.take(size, "small")
        assert memory.keep(size) is is_kept
    memory.give_back(20 * MB)
    memory.take(70 * MB, "large")  # waits for nobody: an ensemble holds what one network answered until the other has


def test_tensors_of_a_python_backend_lie_there_twice() -> None:
    spec = toy_spec()
    window = PATCH[0] * PATCH[1] * PATCH[2] * (2 + 3) * 4
    for votes in (False, True):
        assert bytes_of_window(spec, "tensorrt", votes=votes) == window
        assert bytes_of_window(spec, "python", votes=votes) == 2 * window


def test_votes_take_a_byte_for_each_voxel_and_head_where_they_are_asked_for() -> None:
    spec = toy_spec(votes={"folds": 3})
    voxels = PATCH[0] * PATCH[1] * PATCH[2]
    assert bytes_of_window(spec, "tensorrt", votes=False) == voxels * (2 + 3) * 4
    assert bytes_of_window(spec, "tensorrt", votes=True) == voxels * ((2 + 3) * 4 + 3)
    assert bytes_of_window(spec, "python", votes=True) == 2 * voxels * ((2 + 3) * 4 + 3)


def test_call_without_votes_goes_where_one_with_votes_finds_no_room() -> None:
    spec = toy_spec(votes={"folds": 3})
    taken: list[int] = []

    class Memory(SharedMemoryUse):
        def take(self, size: int, what: str) -> None:
            taken.append(size)
            raise InferenceFailedError(what)

    window = bytes_of_window(spec, "python", votes=False)
    for most in (window, 8 * window):
        predictor = InProcessPredictor(
            None, spec, 1, instances=1, network_backend="python", memory=Memory(most, free=lambda: 8 * window),
            is_alone=lambda: True,
        )  # fmt: skip
        for votes in (False, True):
            with pytest.raises(InferenceFailedError):
                predictor.predict(toy_patches(1), votes=votes)
    assert taken == [window, bytes_of_window(spec, "python", votes=True)] * 2
    assert predictor.max_batch_size == min(spec.max_batch_size, 8 * window // taken[1])


def test_an_entry_that_opens_while_others_fill_the_memory_says_so_and_may_be_tried_again() -> None:
    with pytest.raises(SetupError, match="toy: a window takes 0 MB of shared memory, and calls may take 0 MB"):
        InProcessPredictor(
            None, toy_spec(), 1, instances=1, network_backend="python", memory=SharedMemoryUse(free=lambda: 9000),
            is_alone=lambda: True,
        )  # fmt: skip


@pytest.mark.live
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to mount")
def test_a_full_memory_is_a_named_error_and_no_scan_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.full_shared_memory", str(tmp_path)]
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=112m tmpfs /dev/shm && exec "$@"', "sh", *command]
    environment = {**os.environ, "CTSEG_SCAN_SHARED_MEMORY_MB": "8"}
    done = subprocess.run(mounted, env=environment, capture_output=True, text=True, timeout=480, check=True)
    said = json.loads(done.stdout)
    assert said.pop("a request").startswith("[StatusCode.INTERNAL] Failed to increase the shared memory pool size")
    assert said.pop("calls").startswith("[StatusCode.INTERNAL] toy version 1 gave no logits: ")
    assert set(said.values()) == {"ok"}
