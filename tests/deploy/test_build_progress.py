"""How far TensorRT is with a plan, told by the real compiler."""

import sys
from pathlib import Path

import pytest

from ctseg.deploy.bundle import Bundle
from ctseg.deploy.tensorrt_plan import PlanOptions, build_plan, load_tensorrt
from ctseg.stages import Stage, watched

OPTIONS = PlanOptions(max_batch=2, compute_capability="SM89")


@pytest.fixture(scope="module")
def rtx() -> object:
    sys.path.append(str(Path(sys.prefix) / "tensorrt" / "rtx"))
    return load_tensorrt(("tensorrt_rtx_bindings",))


class Recording:
    """Keeps what it is told, and may be interrupted at a step of TensorRT's."""

    def __init__(self, interrupted_by: BaseException | None = None) -> None:
        self.open: list[Stage] = []
        self.ended_ones: list[Stage] = []
        self._interrupted_by = interrupted_by

    def began(self, stage: Stage) -> None:
        self.open.append(stage)

    def advanced(self, stage: Stage) -> None:
        if self._interrupted_by is not None:
            raise self._interrupted_by

    def ended(self, stage: Stage) -> None:
        self.open.remove(stage)
        self.ended_ones.append(stage)


def test_phases_of_tensorrt_are_stages_that_end(rtx: object, bundle: Bundle) -> None:
    watcher = Recording()
    with watched(watcher):
        build_plan(bundle.folder / "model.onnx", OPTIONS, trt=rtx)
    assert watcher.open == []
    whole = watcher.ended_ones[-1]
    assert whole.what.startswith("TensorRT 1.")
    phases = watcher.ended_ones[:-1]
    assert len(phases) >= 1
    assert all(phase.total is not None and 0 < phase.done <= phase.total for phase in phases)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(143)])
def test_a_signal_ends_a_build_of_a_plan(rtx: object, bundle: Bundle, interruption: BaseException) -> None:
    with watched(Recording(interruption)), pytest.raises(type(interruption)):
        build_plan(bundle.folder / "model.onnx", OPTIONS, trt=rtx)
    build_plan(bundle.folder / "model.onnx", OPTIONS, trt=rtx)  # the next one goes on
