"""How far TensorRT is with a plan: its own phases as stages, and an end where a signal asks for one."""

import threading
from typing import Any

from ctseg.stages import Stage, current_watcher

_monitors: dict[str, Any] = {}
"""By module: a monitor has to outlive all that TensorRT makes with it."""


def progress_monitor(trt: Any) -> Any:
    """Return TensorRT's progress monitor of this process, begun anew.

    Its ``require_went_on()`` raises what a signal's handler raised while TensorRT was at work: bindings swallow that.

    Args:
        trt: TensorRT's module.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells phases without a parent, and those within them, as stages."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self.begin()

        def begin(self) -> None:
            """Forget what came before."""
            self._watcher = current_watcher()
            self._stages: dict[str, Stage] = {}
            self._depths: dict[str, int] = {}
            self._interruption: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Begin a stage."""
            try:
                with self._lock:
                    depth = self._depths.get(parent_phase or "", 0) + 1
                    self._depths[phase_name] = depth
                    if depth <= _DEEPEST:
                        self._stages[phase_name] = Stage(
                            phase_name, int(num_steps), unit="steps", watcher=self._watcher
                        )
            except BaseException as error:  # a signal's: nothing may leave by way of TensorRT
                self._interruption = error

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Go on with a stage; False stops TensorRT."""
            try:
                with self._lock:
                    if (begun := self._stages.get(phase_name)) is not None:
                        begun.advance(int(step) + 1 - begun.done)
            except BaseException as error:  # as above
                self._interruption = error
            return self._interruption is None

        def phase_finish(self, phase_name: str) -> None:
            """End a stage."""
            try:
                with self._lock:
                    self._depths.pop(phase_name, None)
                    if (begun := self._stages.pop(phase_name, None)) is not None:
                        begun.end()
            except BaseException as error:  # as above
                self._interruption = error

        def require_went_on(self) -> None:
            """Raise what interrupted the build, if anything did."""
            if self._interruption is not None:
                raise self._interruption

    if trt.__name__ not in _monitors:
        _monitors[trt.__name__] = Monitor()
    _monitors[trt.__name__].begin()
    return _monitors[trt.__name__]


_DEEPEST = 2
"""Phases within phases within phases are told to nobody: there are thousands."""
