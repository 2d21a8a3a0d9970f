"""Triton python-backend model that takes whole scans: hands each request to ctseg's own code.

This file is copied into a model repository entry and runs in Triton's stub process. It always loads: ctseg is imported
at the first request, and where that is missing or another one, each request is told so, while the network beside it is
served as ever.
"""

import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

_PROTOCOL = 1
"""Of requests and answers; the installed ctseg has to speak the same one."""


class TritonPythonModel:
    """The one instance of the entry."""

    def initialize(self, args: dict[str, str]) -> None:
        """Keep where the entry lies; nothing that can fail."""
        self._folder = Path(args["model_repository"])
        self._version = int(args["model_version"])
        self._service: Any = None

    def execute(self, requests: list[Any]) -> Any:
        """Take requests; each is answered later, by its own response sender."""
        if not hasattr(pb_utils.InferenceRequest, "get_response_sender"):
            error = pb_utils.TritonError("whole scans need Triton 24.07 or newer", pb_utils.TritonError.UNSUPPORTED)
            return [pb_utils.InferenceResponse([], error=error) for _ in requests]
        for request in requests:
            if problem := self._problem():
                self._refuse(request, problem)
            else:
                self._service.take(request)
        return None

    def finalize(self) -> None:
        """Answer what is left."""
        if self._service is not None:
            self._service.close()

    def _problem(self) -> str:
        """Open the service if it is not; return why it cannot be."""
        if self._service is not None:
            return ""
        try:
            from ctseg.predict.whole_scan import PROTOCOL
            from ctseg.serving.whole_scan.service import open_service
        except Exception as error:  # of whatever is missing or broken
            return f"whole scans need ctseg, which the Python of this server ({sys.executable}) does not have: {error}"
        if PROTOCOL != _PROTOCOL:
            return (
                f"this entry speaks protocol {_PROTOCOL} of whole scans, the ctseg of this server {PROTOCOL}: build "
                "the model again, or install the ctseg that built it"
            )
        try:
            self._service = open_service(pb_utils, self._folder, self._version)
        except Exception as error:  # told to whoever asks, and tried again at the next request
            return f"{type(error).__name__}: {error}"
        return ""

    def _refuse(self, request: Any, problem: str) -> None:
        error = pb_utils.TritonError(problem, pb_utils.TritonError.UNSUPPORTED)
        response = pb_utils.InferenceResponse([], error=error)
        request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
