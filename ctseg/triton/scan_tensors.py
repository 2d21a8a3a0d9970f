"""A scan as the tensors of a request, and the label map that comes back."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from tritonclient.grpc import InferInput, InferRequestedOutput

from ctseg.arrays import LabelMap
from ctseg.compiled.parallel import run_parallel
from ctseg.errors import InputError
from ctseg.files.volume import VolumeHeader
from ctseg.predict.contract import ScanContract
from ctseg.predict.segment import Scan
from ctseg.predict.whole_scan import (
    LABELS,
    LABELS_DEFLATED,
    PREVIOUS_LABELS,
    REPORT,
    SPACING,
    VOXELS_FP32,
    VOXELS_INT16,
    ScanReport,
)
from ctseg.triton.errors import WRONG, CallError

_OVERHEAD_BYTES = 1 << 16
"""Of a message, beside its tensors."""
_COPIES = 4
"""How often a tensor lies in memory at most while gRPC packs or unpacks its message."""


@dataclass(frozen=True, eq=False)
class ScanAnswer:
    """What came back for a scan.

    Attributes:
        labels: (z, y, x) on the grid of the scan; perhaps read-only.
        report: What the server says of it.
        bytes_received: Of the tensors.
    """

    labels: LabelMap
    report: ScanReport
    bytes_received: int


def tensors_of(scan: Scan, previous: LabelMap | None) -> list[InferInput]:
    """Return the tensors of a request: the voxels as INT16 where that changes none of them, else as FP32.

    Args:
        scan: The scan.
        previous: (z, y, x): label map of the previous stage, for a second one.
    """
    whole = _as_int16(scan.voxels)
    if whole is None:
        voxels = _tensor(VOXELS_FP32, "FP32", scan.voxels.astype(np.float32, copy=False))
    else:
        voxels = _tensor(VOXELS_INT16, "INT16", whole)
    tensors = [voxels, _tensor(SPACING, "FP64", np.array(scan.spacing_mm, np.float64))]
    if previous is not None:
        tensors.append(_tensor(PREVIOUS_LABELS, "UINT16", previous.astype(np.uint16, copy=False)))
    return tensors


def outputs_of(names: Sequence[str]) -> list[InferRequestedOutput]:
    """Return what a request asks for."""
    return [InferRequestedOutput(name) for name in names]


def check_size(tensors: Sequence[InferInput], scan: Scan, contract: ScanContract, max_message_bytes: int) -> int:
    """Return how many bytes a request has, once they and its answer go into messages.

    Raises:
        InputError: They do not.
    """
    sent = sum(len(tensor._get_content()) for tensor in tensors)
    size = max(sent, contract.label_dtype.itemsize * prod(scan.voxels.shape[1:]))
    if size + _OVERHEAD_BYTES > max_message_bytes:
        shape = " x ".join(map(str, scan.voxels.shape[1:]))
        raise InputError(
            f"{shape} voxels (z, y, x) of {len(scan.voxels)} channels take {size:,} bytes, and at most "
            f"{max_message_bytes - _OVERHEAD_BYTES:,} go into a message: cut the windows here, not in the server",
            settings=("where",),
        )
    return sent


def sending_bytes(header: VolumeHeader, contract: ScanContract) -> int:
    """Return what sending a scan and receiving its label map takes at most, beside both."""
    voxels = prod(header.geometry.shape)
    size = 2 if header.dtype in (np.int16, np.int8, np.uint8) else 4
    previous = 2 if contract.previous_stage else 0
    return _COPIES * voxels * max(size * header.channels + previous, contract.label_dtype.itemsize)


def answer_of(response: Any, request_id: str, scan: Scan, contract: ScanContract) -> ScanAnswer:
    """Read the answer to a scan.

    Args:
        response: Triton's message.
        request_id: Of the request.
        scan: What was sent.
        contract: Says which labels there are.

    Raises:
        CallError: It is not the answer to this scan.
    """
    tensors = dict(zip((tensor.name for tensor in response.outputs), response.raw_output_contents, strict=False))
    if REPORT not in tensors or len(tensors) != 2:
        raise CallError(WRONG, f"expected a label map and a report, found {sorted(tensors)}")
    report = _report_in(tensors[REPORT], request_id)
    shape, dtype = scan.voxels.shape[1:], contract.label_dtype.newbyteorder("<")
    if LABELS in tensors:
        (tensor,) = (tensor for tensor in response.outputs if tensor.name == LABELS)
        expected = (contract.label_dtype.name.upper(), list(shape))
        if (tensor.datatype, list(tensor.shape)) != expected:
            raise CallError(WRONG, f"expected {LABELS} {expected}, found {(tensor.datatype, list(tensor.shape))}")
        content = tensors[LABELS]
        if len(content) != dtype.itemsize * prod(shape):
            raise CallError(WRONG, f"expected {LABELS} of {dtype.itemsize * prod(shape)} bytes, found {len(content)}")
    else:
        content = inflated(tensors.get(LABELS_DEFLATED, b""), dtype.itemsize * prod(shape))
    labels: LabelMap = np.frombuffer(content, dtype).reshape(shape)
    if (found := _highest(labels)) > contract.highest_label:
        raise CallError(WRONG, f"expected labels up to {contract.highest_label}, found {found}")
    return ScanAnswer(labels, report, sum(map(len, tensors.values())))


def inflated(content: bytes, size: int) -> bytes:
    """Return what a zlib stream holds; never more than so many bytes of memory are filled by it.

    Raises:
        CallError: It holds less or more, or is no such stream.
    """
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(content, size)
        rest = stream.decompress(stream.unconsumed_tail, 1) if not stream.eof else b""
    except zlib.error as error:
        raise CallError(WRONG, f"{LABELS_DEFLATED}: no zlib stream: {error}") from error
    if len(data) != size or rest or not stream.eof or stream.unused_data:
        found = f"{len(data)}, and more" if rest or stream.unused_data else str(len(data))
        raise CallError(WRONG, f"{LABELS_DEFLATED}: expected {size} bytes, found {found}")
    return data


def _report_in(content: bytes, request_id: str) -> ScanReport:
    try:
        report = ScanReport.model_validate_json(content)
    except ValidationError as error:
        raise CallError(WRONG, f"{REPORT}: {error.error_count()} problems: {str(error)[:300]}") from error
    if report.request != request_id:
        raise CallError(
            WRONG,
            "the answer to another request came: Triton has mixed up its python backend's answers, as it does after it "
            "was stopped and woken: start the server again",
        )
    return report


def _tensor(name: str, datatype: str, array: npt.NDArray[Any]) -> InferInput:
    tensor = InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def _as_int16(voxels: npt.NDArray[Any]) -> npt.NDArray[np.int16] | None:
    """Return the voxels as int16, C order; None where one would not come back as it was, bit for bit."""
    if voxels.dtype.kind == "f":
        same = _is_whole
    elif np.can_cast(voxels.dtype, np.int16):
        return np.ascontiguousarray(voxels, np.int16)
    else:
        same = _fits
    whole = np.empty(voxels.shape, np.int16)
    depth = voxels.shape[1]
    changed: list[int] = []

    def convert(first: int, last: int) -> None:
        for plane in range(first, last):
            where = divmod(plane, depth)
            if changed:
                return
            if not same(voxels[where], whole[where]):
                changed.append(plane)

    run_parallel(convert, len(voxels) * depth)
    return None if changed else whole


def _is_whole(plane: npt.NDArray[Any], out: npt.NDArray[np.int16]) -> bool:
    with np.errstate(invalid="ignore"):  # what is too large for int16 is found to have changed
        np.copyto(out, plane, casting="unsafe")
    before, after = np.ascontiguousarray(plane, np.float32), out.astype(np.float32)
    return bool((before.view(np.uint32) == after.view(np.uint32)).all())


def _fits(plane: npt.NDArray[Any], out: npt.NDArray[np.int16]) -> bool:
    limits = np.iinfo(np.int16)
    if plane.min() < limits.min or plane.max() > limits.max:
        return False
    np.copyto(out, plane, casting="unsafe")
    return True


def _highest(labels: LabelMap) -> int:
    highest = np.zeros(len(labels), np.int64)

    def look(first: int, last: int) -> None:
        for index in range(first, last):
            highest[index] = labels[index].max()

    run_parallel(look, len(labels))
    return int(highest.max())
