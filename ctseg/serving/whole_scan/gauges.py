"""Gauges in Triton's metrics: how many scans wait and run, for autoscaling."""

import logging
from typing import Any

log = logging.getLogger(__name__)

WAITING = "ctseg_scans_waiting"
RUNNING = "ctseg_scans_running"
_TOLD = {WAITING: "Whole scans that wait for their turn", RUNNING: "Whole scans that are worked on"}


class Gauges:
    """Both gauges of one entry; silent where the server has no metrics.

    Args:
        backend: The module ``triton_python_backend_utils``.
        model: Of the entry.
        version: Of the entry.
    """

    def __init__(self, backend: Any, model: str, version: int) -> None:
        self._metrics: dict[str, Any] = {}
        try:
            for name, told in _TOLD.items():
                family = backend.MetricFamily(name=name, description=told, kind=backend.MetricFamily.GAUGE)
                metric = family.Metric(labels={"model": model, "version": str(version)})
                self._metrics[name] = (family, metric)
        except Exception as error:  # of the stub: the server has no metrics, or is too old for one's own
            log.info("no gauges of whole scans: %s", error)
            self._metrics.clear()

    def show(self, *, waiting: int, running: int) -> None:
        """Set both."""
        values = {WAITING: waiting, RUNNING: running}
        try:
            for name, (_, metric) in self._metrics.items():
                metric.set(values[name])
        except Exception as error:  # of the stub: no scan fails by a number that nobody sees
            log.warning("the gauges of whole scans stand still: %s", error)
            self._metrics.clear()
