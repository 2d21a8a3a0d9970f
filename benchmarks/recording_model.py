"""Triton python-backend model that runs the ``network.py`` beside it and writes down when it computed.

Copied into entries for the benchmark only. It runs in Triton's stub process and imports nothing of ctseg.
"""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any


def _load_network() -> Any:
    spec = importlib.util.spec_from_file_location("network", Path(__file__).with_name("network.py"))
    assert spec is not None  # noqa: S101 - the benchmark wrote the file
    assert spec.loader is not None  # noqa: S101 - as above
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._log = Path(parameters["ctseg_trace"]["string_value"]).open("a", buffering=1)  # noqa: SIM115 - kept open
        self._network = _load_network().TritonPythonModel()
        self._network.initialize(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer, and note the begin and the end in seconds since 1970."""
        began = time.time()
        responses: list[Any] = self._network.execute(requests)
        self._log.write(f"{began:.6f} {time.time():.6f}\n")
        return responses
