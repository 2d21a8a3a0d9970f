"""What tests of whole scans share: a client of tritonclient alone, and a network that answers when it is let."""

import json
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from ctseg.model_spec import ModelSpec
from ctseg.serving.entries import read_entry
from ctseg.serving.process import RunningServer
from ctseg.serving.scan_entry import publish_scan_entry
from tests.support.toy_models import WEIGHTS, toy_spec, write_toy_entry

SPACING = (3.0, 1.0, 1.0)
_TYPES = {"int16": "INT16", "float32": "FP32", "float64": "FP64", "uint16": "UINT16"}


def write_scannable_entry(
    repository: Path, spec: ModelSpec | None = None, version: int = 1, **options: Any
) -> ModelSpec:
    """Write a toy network with its entry for whole scans."""
    spec = write_toy_entry(repository, spec, version, **options)
    publish_scan_entry(repository, read_entry(repository / spec.name))
    return spec


def write_gated_entry(repository: Path, gate: Path, name: str = "gated") -> ModelSpec:
    """Write a toy network, with its entry for whole scans, that answers as many calls as :class:`Gate` lets."""
    spec = write_scannable_entry(repository, toy_spec(name))
    (repository / name / "1" / "model.py").write_text(
        f"""
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

CALLS, ALLOWED = Path({str(gate / "calls")!r}), Path({str(gate / "allowed")!r})

class TritonPythonModel:
    def initialize(self, args):
        self.count = 0

    def execute(self, requests):
        return [self.answer(np.from_dlpack(pb_utils.get_input_tensor_by_name(each, "input"))) for each in requests]

    def answer(self, patches):
        marks = [round(float(patch[0].max()) * 64) for patch in patches]
        with CALLS.open("a") as file:
            file.write(f"{{marks[0]}}\\n")
        while self.count >= int(ALLOWED.read_text() or 0):
            time.sleep(0.002)
        self.count += 1
        if 63 in marks:
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError("out of luck"))
        weights = np.array({WEIGHTS.tolist()}, np.float32)
        logits = np.einsum("hc,bczyx->bhzyx", weights, patches).astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("logits", np.ascontiguousarray(logits))])
"""
    )
    return spec


class Gate:
    """Lets the calls of a gated network through.

    Args:
        folder: The one that the network knows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "calls").touch()
        self.let(0)

    def let(self, count: int) -> None:
        """Let so many calls through, counted from the begin."""
        new = self.folder / "allowed.new"
        new.write_text(str(count))
        new.replace(self.folder / "allowed")

    @property
    def calls(self) -> list[int]:
        """The mark of each call that has come so far, in order."""
        return [int(line) for line in (self.folder / "calls").read_text().splitlines()]


def marked_scan(mark: int, shape: tuple[int, int, int] = (6, 10, 14)) -> np.ndarray:
    """Return a scan whose windows show a mark of 1 to 63 in a gated network."""
    return np.full((2, *shape), mark / 64, np.float32)


class ScanClient:
    """Asks an entry for whole scans with tritonclient alone.

    Args:
        server: The server.
        model: The entry.
    """

    def __init__(self, server: RunningServer, model: str = "toy_scan") -> None:
        self._client = InferenceServerClient(server.url)
        self._headers = dict(server.headers)
        self._model = model

    def send(
        self,
        voxels: np.ndarray,
        spacing_mm: Sequence[float] = SPACING,
        *,
        id: str = "",  # noqa: A002 (Triton's word)
        outputs: Sequence[str] = ("labels", "report"),
        previous: np.ndarray | None = None,
        **parameters: Any,
    ) -> "Pending":
        """Send a scan without waiting for its answer."""
        name = {"int16": "voxels_int16", "float32": "voxels_fp32"}[str(voxels.dtype)]
        tensors = {name: voxels, "spacing_mm": np.asarray(spacing_mm, np.float64)}
        if previous is not None:
            tensors["previous_labels"] = previous
        return self._ask(tensors, outputs, id, parameters)

    def ask_about(self, id: str, word: str = "progress_of") -> dict[str, Any]:  # noqa: A002 (Triton's word)
        """Return what the entry says of another request; ``cancel`` gives it up, too."""
        return self._ask({}, ("report",), "", {word: id}).report

    @property
    def versions(self) -> list[str]:
        """Which versions of the entry are ready."""
        try:
            return list(self._client.get_model_metadata(self._model, headers=self._headers).versions)
        except InferenceServerException:  # between two of them
            return []

    def _ask(
        self, tensors: dict[str, np.ndarray], outputs: Sequence[str], name: str, parameters: dict[str, Any]
    ) -> "Pending":
        inputs = []
        for tensor, array in tensors.items():
            inputs.append(InferInput(tensor, array.shape, _TYPES[str(array.dtype)]))
            inputs[-1].set_data_from_numpy(np.ascontiguousarray(array))
        pending = Pending()
        pending.call = self._client.async_infer(
            self._model, inputs, pending.finish, outputs=[InferRequestedOutput(name) for name in outputs],
            request_id=name, headers=self._headers, parameters=parameters,
        )  # fmt: skip
        return pending


class Pending:
    """An answer to come."""

    def __init__(self) -> None:
        self.answers: list[tuple[InferResult | None, Exception | None]] = []
        self.call: Any = None
        self._done = threading.Event()

    def finish(self, result: InferResult | None, error: Exception | None) -> None:
        """Take the answer; tritonclient's callback."""
        self.answers.append((result, error))
        self._done.set()

    def result(self) -> InferResult:
        """Wait for the answer."""
        assert self._done.wait(240), "no answer"
        result, error = self.answers[0]
        if error is not None:
            raise error
        assert result is not None
        return result

    @property
    def labels(self) -> np.ndarray:
        """The label map."""
        return self.result().as_numpy("labels")

    @property
    def inflated(self) -> bytes:
        """The label map's bytes, from its deflated form."""
        return zlib.decompress(self.result().as_numpy("labels_deflated").tobytes())

    @property
    def report(self) -> dict[str, Any]:
        """What goes with it."""
        report: dict[str, Any] = json.loads(self.result().as_numpy("report").tobytes())
        return report

    @property
    def outcome(self) -> str:
        """Wait for what comes; return ``ok``, or the error as :attr:`failure` does."""
        assert self._done.wait(240), "no answer"
        error = self.answers[0][1]
        return "ok" if error is None else str(error)

    @property
    def failure(self) -> str:
        """Wait for the error; return gRPC's code and the message."""
        assert self._done.wait(240), "no answer"
        error = self.answers[0][1]
        assert error is not None, "an answer, and no error"
        return str(error)
