"""A server that takes whole scans, in this process: a test decides its answers, failures, silence and signs of life."""

import itertools
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from ctseg.model_spec import ModelSpec
from ctseg.predict.contract import contract_of
from ctseg.predict.segment import WindowOptions
from ctseg.predict.whole_scan import (
    LABELS,
    LABELS_DEFLATED,
    PREVIOUS_LABELS,
    REPORT,
    SPACING,
    VOXELS_FP32,
    VOXELS_INT16,
    ScanProgress,
    ScanReport,
)
from ctseg.triton.addresses import Address
from ctseg.triton.arrivals import Arrivals
from ctseg.triton.configuration import ModelConfig, scan_parameter, spec_parameter
from ctseg.triton.errors import CANCELLED, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.scan_server import ScanServer, WantedScans
from ctseg.triton.served_version import choose_version
from ctseg.triton.whole_scan import ScanSegmenter
from tests.support.toy_models import toy_spec

SPEC = toy_spec()
_NUMPY = {"INT16": np.int16, "FP32": np.float32, "FP64": np.float64, "UINT16": np.uint16}


class SentScan:
    """What a server got.

    Attributes:
        id: Of the request.
        tensors: By name.
        outputs: Names of what is asked for.
        parameters: Of the request.
    """

    def __init__(self, inputs: list[Any], outputs: list[Any], request_id: str, parameters: Mapping[str, Any]) -> None:
        self.id = request_id
        self.tensors = {
            tensor.name(): np.frombuffer(tensor._get_content(), _NUMPY[tensor.datatype()]).reshape(tensor.shape())
            for tensor in inputs
        }
        self.outputs = [output.name() for output in outputs]
        self.parameters = dict(parameters)

    @property
    def voxels(self) -> np.ndarray:
        """(channels, z, y, x)."""
        (voxels,) = (self.tensors[name] for name in (VOXELS_INT16, VOXELS_FP32) if name in self.tensors)
        return voxels

    @property
    def labels(self) -> np.ndarray:
        """What a sound server answers: 1 where the first channel is positive."""
        return (self.voxels[0] > 0).astype(np.uint8)

    def answer(self, **changes: Any) -> list[tuple[str, str, list[int], bytes]]:
        """Return a sound answer, or one with other ``labels``, ``packed`` bytes or fields of the report."""
        labels = changes.pop("labels", self.labels)
        seconds = dict.fromkeys(("waited", "prepare", "network", "restore", "total"), 0.25)
        report: dict[str, Any] = {
            "request": self.id, "model": "toy", "version": 1, "digest": SPEC.digest, "seconds": seconds, "windows": 8,
            "volumes_ml": {},
        }  # fmt: skip
        packed = changes.pop("packed", None) or zlib.compress(labels.tobytes())
        told = ScanReport.model_validate({**report, **changes}).model_dump_json().encode()
        first = (
            (LABELS, labels.dtype.name.upper(), list(labels.shape), labels.tobytes())
            if LABELS in self.outputs
            else (LABELS_DEFLATED, "UINT8", [len(packed)], packed)
        )
        return [first, (REPORT, "UINT8", [len(told)], told)]


class FakeScanClient:
    """Stands in for :class:`ctseg.triton.client.TritonClient`.

    Attributes:
        events: What was asked of it, in order: ``scan ID``, ``cancel ID``, and ``gRPC cancel ID``.
        scans: Those that came.
        failures: What the next scans end with.
        broken: What every scan ends with.
        gone: What every call ends with.
        answer_with: Makes answers; sound ones by default.
        holds: Whether scans are kept waiting.
        progress: Makes what is said of a scan; nobody's by default.
        computed: How often the network has run; None where it does not say.
    """

    def __init__(self, address: str = "127.0.0.1:1", *, digest: str = SPEC.digest) -> None:
        self.address = Address(address)
        self.digest = digest
        self.events: list[str] = []
        self.scans: list[SentScan] = []
        self.failures: list[CallError] = []
        self.broken: CallError | None = None
        self.gone: CallError | None = None
        self.controls_fail: CallError | None = None
        self.answer_with: Callable[[SentScan], list[Any]] = SentScan.answer
        self.holds = False
        self.progress: Callable[[str], ScanProgress] = lambda name: ScanProgress(request=name, state="unknown")
        self.computed: Iterator[int] | None = itertools.repeat(0)
        self.looks = 0
        self._held: dict[str, Callable[[Any, Any], None]] = {}
        self._changed = threading.Condition()
        self.is_closed = False

    def ask(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        assert timeout_s > 0
        if self.gone is not None:
            raise CallError(self.gone.status, self.gone.text)
        if method == "get_inference_statistics":
            if self.computed is None:
                raise CallError("restricted", "statistics")
            return SimpleNamespace(model_stats=[SimpleNamespace(execution_count=next(self.computed))])
        is_network = arguments and arguments[0] == SPEC.name
        if method == "get_model_metadata":
            tensors = (
                ([SPEC.input.name], [SPEC.output.name])
                if is_network
                else ([VOXELS_INT16, VOXELS_FP32, SPACING, PREVIOUS_LABELS], [LABELS, LABELS_DEFLATED, REPORT])
            )
            shapes = {SPEC.input.name: (-1, 2, *SPEC.patch_size), SPEC.output.name: (-1, 3, *SPEC.patch_size)}
            inputs, outputs = (
                [SimpleNamespace(name=name, datatype="FP32", shape=shapes.get(name, ())) for name in names]
                for names in tensors
            )
            return SimpleNamespace(versions=["1"], inputs=inputs, outputs=outputs)
        if method == "get_model_config":
            config = ModelConfig(max_batch_size=4)
            key, value = (spec_parameter(1), SPEC.to_json()) if is_network else (scan_parameter(1), self.digest)
            config.parameters[key].string_value = value
            return SimpleNamespace(config=config)
        return None

    def infer(
        self,
        model: str,
        version: int,
        inputs: list[Any],
        outputs: list[Any],
        receive: Callable[[Any, Any], None],
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> Callable[[], None]:
        assert (model, version) == ("toy_scan", 1)
        scan = SentScan(inputs, outputs, request_id, parameters or {})
        self.events.append(f"scan {scan.id}")
        self.scans.append(scan)
        for problem in (self.gone, self.broken, self.failures.pop(0) if self.failures else None):
            if problem is not None:
                raise CallError(problem.status, problem.text)
        if self.holds:
            with self._changed:
                self._held[scan.id] = receive
                self._changed.notify_all()
        else:
            receive(self.result(self.answer_with(scan)), None)

        def cancel() -> None:
            self.events.append(f"gRPC cancel {scan.id}")
            self._end(scan.id)

        return cancel

    def tell(self, model: str, version: int, parameters: Mapping[str, Any], *, timeout_s: float) -> Any:
        assert (model, version) == ("toy_scan", 1)
        assert timeout_s > 0
        problem = self.gone or self.controls_fail
        self.looks += parameters.get("progress_of", "0") != "0"
        if "cancel" in parameters and problem is None:
            self.events.append(f"cancel {parameters['cancel']}")
            self._end(parameters["cancel"])
        if problem is not None:
            raise CallError(problem.status, problem.text)
        name = next(iter(parameters.values()))
        progress = self.progress(name).model_dump_json().encode()
        return self.result([(REPORT, "UINT8", [len(progress)], progress)])

    def wait_until_held(self, count: int = 1) -> None:
        """Wait until so many scans are being held."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._held) >= count, 120), "no scan came"

    def release(self) -> None:
        """Answer what is held, soundly."""
        for scan in self.scans:
            if (receive := self._held.pop(scan.id, None)) is not None:
                receive(self.result(self.answer_with(scan)), None)

    def close(self) -> None:
        self.is_closed = True

    def _end(self, name: str) -> None:
        self.fail(name, CANCELLED, "the request was given up")

    def fail(self, name: str, status: str, text: str) -> None:
        """Answer a scan that is held by an error."""
        if (receive := self._held.pop(name, None)) is not None:
            receive(None, InferenceServerException(text, status))

    @staticmethod
    def result(tensors: list[tuple[str, str, list[int], bytes]]) -> Any:
        """Return such tensors as tritonclient does."""
        outputs = [SimpleNamespace(name=name, datatype=kind, shape=shape) for name, kind, shape, _ in tensors]
        response = SimpleNamespace(outputs=outputs, raw_output_contents=[content for *_, content in tensors])
        return SimpleNamespace(get_response=lambda: response)


@contextmanager
def scans_to(
    *clients: FakeScanClient,
    windows: WindowOptions | None = None,
    version: int | None = None,
    network: ModelSpec = SPEC,
    **options: Any,
) -> Iterator[ScanSegmenter]:
    """Send whole scans to fake servers."""
    wanted = WantedScans(SPEC.name, SPEC.digest, {SPEC.name: network}, version=version, is_hidden=network != SPEC)
    by_address = {client.address: client for client in clients}

    def connect(address: Address, _: Callable[[], None]) -> ScanServer:
        client: Any = by_address[address]
        return ScanServer(client, wanted, choose_version(client, wanted, 60))

    options = {"timeout_s": 240.0, **options}
    arrivals = Arrivals(list(by_address), connect, 60)
    segmenter = ScanSegmenter(arrivals, wanted, contract_of(SPEC), windows or WindowOptions(), ClientOptions(**options))
    try:
        yield segmenter
    finally:
        segmenter.close()
