"""The one answer that each request gets, whatever happens."""

import logging
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap
from ctseg.errors import SetupError
from ctseg.predict.contract import ScanContract
from ctseg.predict.whole_scan import ERROR_OF_CODE, LABELS, LABELS_DEFLATED, REPORT, ScanProgress, ScanReport
from ctseg.serving.whole_scan.tensors import text_to_triton, to_triton

log = logging.getLogger(__name__)

_FASTEST = 1
"""zlib's level: label maps are long runs, which it packs as well as any other."""


class Answer:
    """The answer to one request: the first one that is sent is the only one.

    Args:
        backend: The module ``triton_python_backend_utils``.
        request: The request, which Triton keeps until its answer is sent.
    """

    def __init__(self, backend: Any, request: Any) -> None:
        self._backend = backend
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._is_sent = False

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it still."""
        # Triton 2.51 ends by SIGSEGV where this is asked while the answer is sent, or after
        if not self._lock.acquire(blocking=False):
            return True
        try:
            return not self._is_sent and not self._sender.is_cancelled()
        finally:
            self._lock.release()

    def labels(self, labels: LabelMap, contract: ScanContract, report: ScanReport, *, deflated: bool) -> None:
        """Answer with a label map.

        Args:
            labels: (z, y, x).
            contract: Says which type all label maps of the entry have.
            report: What goes with it.
            deflated: Whether it is sent deflated.
        """
        plain: npt.NDArray[Any] = np.ascontiguousarray(labels, contract.label_dtype)
        if deflated:
            name, sent = LABELS_DEFLATED, np.frombuffer(bytearray(zlib.compress(plain.data, _FASTEST)), np.uint8)
        else:
            name, sent = LABELS, plain
        self._send([to_triton(self._backend, name, sent), text_to_triton(self._backend, REPORT, report.to_json())])

    def progress(self, progress: ScanProgress) -> None:
        """Answer with how far another request is."""
        self._send([text_to_triton(self._backend, REPORT, progress.model_dump_json())])

    def error(self, error: BaseException) -> None:
        """Answer with an error, unless something was answered before; this never fails."""
        code = code_of(error)
        known = isinstance(error, (*ERROR_OF_CODE.values(), CancelledError, SetupError))
        told = str(error) if known else f"{type(error).__name__}: {error}"
        if not known:
            log.error("a scan failed", exc_info=error)
        kinds = self._backend.TritonError
        try:
            self._send((), error=kinds(told or "the request was given up", getattr(kinds, code)))
        except Exception:  # of the stub: nothing more can be done for this request
            log.exception("an error could not be sent: %s", told)

    def _send(self, tensors: Sequence[Any], **more: Any) -> None:
        with self._lock:
            if self._is_sent:
                return
            response = self._backend.InferenceResponse(list(tensors), **more)
            self._sender.send(response, flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            self._is_sent = True


def code_of(error: BaseException) -> str:
    """Return Triton's name of the code that an error is told by."""
    if isinstance(error, CancelledError):
        return "CANCELLED"
    if isinstance(error, SetupError):
        return "UNSUPPORTED"
    return next((code for code, kind in ERROR_OF_CODE.items() if isinstance(error, kind)), "INTERNAL")
