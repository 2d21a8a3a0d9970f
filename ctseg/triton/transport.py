"""How patches reach a server and logits come back: by message, or by shared memory."""

import logging
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput

from ctseg.arrays import Logits, Patches
from ctseg.errors import SetupError
from ctseg.model_spec import DType, ModelSpec
from ctseg.numerics.votes import logits_and_votes
from ctseg.triton import shared_memory
from ctseg.triton.configuration import REQUEST_OUTPUT
from ctseg.triton.connection import ServerConnection
from ctseg.triton.errors import (
    CANCELLED,
    NO_ANSWER,
    SHARED_MEMORY_REFUSALS,
    WRONG,
    CallError,
    SharedMemoryRefusedError,
    call_error_of,
)
from ctseg.triton.options import ClientOptions

log = logging.getLogger(__name__)

SEGMENT_PREFIX = "ctseg-client-"
"""Begin of the names of the client's shared-memory segments."""

_NUMBER_BITS = 56
"""Of a request's id: no other process asks the same server by the same one."""
_MESSAGE_OVERHEAD_BYTES = 4096
_TRIAL_BYTES = 4096
_WORTHWHILE_BATCH_BYTES = 128 << 20
"""Windows that are larger than this together keep a GPU as busy one by one, in less memory."""

_WIRE: Mapping[DType, tuple[type[np.generic], Any]] = {
    "FP32": (np.float32, np.uint32(0x7FC0C75E)),
    "FP16": (np.float16, np.uint16(0x7E5C)),
    "BF16": (np.uint16, np.uint16(0x7FD3)),
}
"""How logits lie in memory, and a NaN that no network writes: what it overwrites was answered."""


_NO_VOTE = 255
"""More than there are folds: what it overwrites was answered."""


def batch_limit(spec: ModelSpec, max_message_bytes: int) -> int:
    """Return how many patches are worth sending at once, whatever the server takes.

    An answer with votes is longer, and who asks for them is not known here: where a message is what limits them, so
    many are sent as come back with votes, but one at least.

    Raises:
        SetupError: One patch or its answer is too long for a message.
    """
    largest = max(spec.patch_bytes, spec.logits_bytes)
    limit = (max_message_bytes - _MESSAGE_OVERHEAD_BYTES) // largest
    if limit < 1:
        raise SetupError(
            f"{spec.name}: one patch {spec.patch_size} with {spec.num_heads} heads takes {largest} bytes, at most "
            f"{max_message_bytes} go into a message: export with FP16 answers, or allow longer ones"
        )
    with_votes = (max_message_bytes - _MESSAGE_OVERHEAD_BYTES) // (spec.logits_bytes + spec.votes_bytes)
    return min(limit, max(1, with_votes), max(1, _WORTHWHILE_BATCH_BYTES // largest))


class Traffic:
    """Bytes of tensors that went to and fro, by either transport, repeated requests counted again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = 0
        self._received = 0

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """Add bytes."""
        with self._lock:
            self._sent += sent
            self._received += received

    @property
    def sent(self) -> int:
        """Bytes sent so far."""
        with self._lock:
            return self._sent

    @property
    def received(self) -> int:
        """Bytes received so far."""
        with self._lock:
            return self._received


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        server: Who is to answer.
        patches: What is sent; not changed.
        deadline: Tells until when to wait, by the monotonic clock; later and later while the server answers others.
        votes: Whether the votes of the folds are asked for.
    """

    server: ServerConnection
    patches: Patches
    deadline: Callable[[], float]
    votes: bool = False


class MessageTransport:
    """Sends tensors inside gRPC messages.

    Args:
        spec: Of the model.
        timeout_s: For the message of an error.
        closing: When it is set, nobody waits any longer.
        traffic: Where bytes are counted.
    """

    def __init__(self, spec: ModelSpec, timeout_s: float, closing: threading.Event, traffic: Traffic) -> None:
        self.spec = spec
        self.traffic = traffic
        self._timeout_s = timeout_s
        self._closing = closing

    def exchange(self, call: Call) -> Logits:
        """Send patches and return their logits, and their votes behind them if they are asked for.

        Raises:
            CallError: No answer, or a wrong one.
        """
        spec = self.spec
        request = InferInput(spec.input.name, call.patches.shape, spec.input.dtype)
        request.set_data_from_numpy(_as_sent(call.patches, spec.input.dtype))
        self.traffic.count(sent=len(call.patches) * spec.patch_bytes)
        result = self.answer(call, request, [InferRequestedOutput(name) for name in _names(spec, votes=call.votes)])
        return self.logits_of(result, len(call.patches), votes=call.votes)

    def answer(self, call: Call, request: InferInput, wanted: Sequence[InferRequestedOutput]) -> Any:
        """Send one request and wait; never cancels, because old servers crash upon that.

        Raises:
            CallError: No answer, or an error.
        """
        done = threading.Event()
        box: list[Any] = [None, None]
        number = secrets.randbits(_NUMBER_BITS) if call.server.served.names_requests else 0
        outputs = [*wanted, InferRequestedOutput(REQUEST_OUTPUT)] if number else list(wanted)

        def receive(result: Any, error: Any) -> None:
            box[:] = [result, error]
            done.set()

        call.server.send([request], outputs, receive, str(number or ""))
        while not done.wait(min(1.0, max(0.0, call.deadline() - time.monotonic()))):
            if self._closing.is_set():
                raise CallError(CANCELLED, "the predictor was closed")
            if time.monotonic() >= call.deadline():
                raise CallError(NO_ANSWER, f"nothing was answered for {self._timeout_s:g} s")
        result, error = box
        if error is not None:
            raise call_error_of(error) from error
        if number:
            _check_number(result, number)
        return result

    def logits_of(self, result: Any, batch: int, *, votes: bool) -> Logits:
        """Return the tensors that lie in an answer; perhaps read-only.

        Raises:
            CallError: They are not those of the spec.
        """
        spec, response = self.spec, result.get_response()
        contents = [_content(response, name) for name in _names(spec, votes=votes)]
        _check_answer(spec, response, batch, [len(content) for content in contents])
        self.traffic.count(received=sum(map(len, contents)))
        shape = (batch, spec.num_heads, *spec.patch_size)
        logits = _as_logits(np.frombuffer(contents[0], _WIRE[spec.output.dtype][0]).reshape(shape), spec.output.dtype)
        if not votes:
            return logits
        return _with_votes(logits, np.frombuffer(contents[1], np.uint8).reshape(shape), spec)


class SharedMemoryTransport:
    """Lets the server read patches and write logits in memory that both processes see.

    Args:
        messages: Carries the requests, and the tensors for which there is no room.
        pool: The memory.
        register_timeout_s: How long a server may take to map a segment.
    """

    def __init__(self, messages: MessageTransport, pool: shared_memory.SegmentPool, register_timeout_s: float) -> None:
        self._messages = messages
        self._spec = messages.spec
        self._pool = pool
        self._register_timeout_s = register_timeout_s

    def exchange(self, call: Call) -> Logits:
        """Send patches and return their logits, which may lie in shared memory until they are gone.

        Votes, where they are asked for, are put behind the logits, and then nothing lies there any more.

        Raises:
            CallError: No answer, or a wrong one.
            SharedMemoryRefusedError: The server answers, but takes no shared memory.
        """
        spec, batch = self._spec, len(call.patches)
        source = self._pool.take(batch * spec.patch_bytes)
        if source is None:
            return self._messages.exchange(call)
        # without a target, because the caller holds many answers, this one comes by message: nobody waits
        target = self._pool.take(batch * (spec.logits_bytes + (spec.votes_bytes if call.votes else 0)))
        try:
            answer = self._exchange(call, source, target)
        except CallError as error:
            for segment in (source, target):
                if segment is not None:  # the server may still read or write it
                    self._pool.retire(segment)
                    call.server.abandon(segment)
            if error.status in SHARED_MEMORY_REFUSALS:
                raise SharedMemoryRefusedError(str(error)) from error
            raise
        self._pool.give_back(source)
        if target is None:
            return cast(Logits, answer)
        if spec.output.dtype != "FP32" or call.votes:
            logits = _as_logits(answer, spec.output.dtype)
            if call.votes:
                offset = batch * spec.logits_bytes
                logits = _with_votes(logits, target.array(answer.shape, np.dtype(np.uint8), offset=offset), spec)
            self._pool.give_back(target)
            return logits
        # views of the answer keep this array alive as their base, so the segment is free when it is gone
        weakref.finalize(answer, self._pool.give_back, target).atexit = False
        return cast(Logits, answer)

    def _exchange(
        self, call: Call, source: shared_memory.Segment, target: shared_memory.Segment | None
    ) -> npt.NDArray[Any]:
        spec, messages, batch = self._spec, self._messages, len(call.patches)
        for segment in (source, target):
            if segment is not None:
                call.server.register(segment, self._register_timeout_s)
        sent = _as_sent(call.patches, spec.input.dtype)
        source.array(sent.shape, sent.dtype)[...] = sent
        request = InferInput(spec.input.name, call.patches.shape, spec.input.dtype)
        request.set_shared_memory(source.name, sent.nbytes)
        wanted = [InferRequestedOutput(name) for name in _names(spec, votes=call.votes)]
        messages.traffic.count(sent=sent.nbytes)
        if target is None:
            return messages.logits_of(messages.answer(call, request, wanted), batch, votes=call.votes)
        dtype, unwritten = _WIRE[spec.output.dtype]
        answer: npt.NDArray[Any] = target.array((batch, spec.num_heads, *spec.patch_size), dtype)
        bits = answer.view(unwritten.dtype).reshape(-1)
        bits[-1] = unwritten
        wanted[0].set_shared_memory(target.name, answer.nbytes)
        if call.votes:
            counts = target.array(answer.shape, np.dtype(np.uint8), offset=answer.nbytes)
            counts.reshape(-1)[-1] = _NO_VOTE
            wanted[1].set_shared_memory(target.name, counts.nbytes, offset=answer.nbytes)
        response = messages.answer(call, request, wanted).get_response()
        sizes = [0 if bits[-1] == unwritten else answer.nbytes, *([batch * spec.votes_bytes] if call.votes else [])]
        _check_answer(spec, response, batch, sizes)
        messages.traffic.count(received=sum(sizes))
        return answer

    def offer(self, server: ServerConnection) -> CallError | None:
        """Try shared memory with a server, which notes whether it takes it; return why not."""
        trial = self._pool.take(_TRIAL_BYTES)
        if trial is None:
            return CallError(NO_ANSWER, "no space in /dev/shm")
        try:
            server.register(trial, self._register_timeout_s)
        except CallError as error:
            return error
        finally:
            self._pool.give_back(trial)
        server.shares_memory = True
        return None

    def close(self, servers: Sequence[ServerConnection]) -> None:
        """Remove the memory's names, and let the servers forget it; answers that are held stay readable."""
        for segment in self._pool.close():
            for server in servers:
                server.abandon(segment)


def share_memory_with(
    servers: Sequence[ServerConnection], messages: MessageTransport, options: ClientOptions
) -> SharedMemoryTransport | None:
    """Try shared memory with the servers on this host; each notes whether it takes it.

    Args:
        servers: All servers; with ``shared_memory="on"`` every one is tried and has to take it.
        messages: See :class:`SharedMemoryTransport`.
        options: Whether to try, and how much memory there may be.

    Returns:
        None where it is off or there is nobody to share with.

    Raises:
        SetupError: It was asked for and is not to be had.
    """
    if options.shared_memory == "off":
        return None
    required = options.shared_memory == "on"
    if not shared_memory.is_available():
        if required:
            raise SetupError(
                "this system has no shared memory that Triton could map: send by gRPC", settings=("shared_memory",)
            )
        return None
    shared_memory.sweep(SEGMENT_PREFIX)
    candidates = [server for server in servers if required or server.is_local]
    if not candidates:
        return None
    pool = shared_memory.SegmentPool(SEGMENT_PREFIX, max_bytes=options.max_shared_memory_bytes)
    transport = SharedMemoryTransport(messages, pool, options.connect_timeout_s)
    reasons = [f"{server.url}: {error}" for server in candidates if (error := transport.offer(server))]
    if required and reasons:
        transport.close(servers)
        raise SetupError(
            f"{messages.spec.name}: shared memory is not to be had: {'; '.join(reasons)}. "
            "Start the server with client shared memory allowed, on this host, or send by gRPC",
            settings=("shared_memory",),
        )
    return transport


def _check_number(result: Any, number: int) -> None:
    """Refuse the answer of another request."""
    found = result.as_numpy(REQUEST_OUTPUT)
    if found is None or not (found == number).all():
        raise CallError(
            WRONG,
            "the answer of another request came: Triton has mixed up its python backend's answers, as it does after it "
            "was stopped and woken: start the server again",
        )


def _names(spec: ModelSpec, *, votes: bool) -> list[str]:
    """Return the names of the tensors that are asked for."""
    return [spec.output.name, *([spec.votes.name] if votes and spec.votes else [])]


def _content(response: Any, name: str) -> bytes:
    """Return the bytes of a tensor in an answer; where it has another name than it should, of the first."""
    names = [tensor.name for tensor in response.outputs]
    place = names.index(name) if name in names else 0
    return response.raw_output_contents[place] if len(response.raw_output_contents) > place else b""


def _with_votes(logits: Logits, counts: npt.NDArray[np.uint8], spec: ModelSpec) -> Logits:
    """Put votes behind logits.

    Raises:
        CallError: More folds vote than there are.
    """
    folds = spec.votes.folds if spec.votes else 0
    if (most := int(counts.max(initial=0))) > folds:
        raise CallError(WRONG, f"expected votes of at most {folds} folds, found {most}: build the entry again")
    return logits_and_votes(logits, counts, spec)


def _check_answer(spec: ModelSpec, response: Any, batch: int, sizes: Sequence[int]) -> None:
    """Check the tensors of an answer by name, type, shape and bytes: the logits, and the votes if they are asked for.

    Raises:
        CallError: They are not those of the spec.
    """
    expected = (batch, spec.num_heads, *spec.patch_size)
    outputs = [tensor for tensor in response.outputs if tensor.name != REQUEST_OUTPUT]
    found = [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in outputs]
    names = _names(spec, votes=len(sizes) > 1)
    wanted = list(zip(names, (spec.output.dtype, "UINT8"), (expected, expected), strict=False))
    if sorted(found) != sorted(wanted):
        told = " and ".join(f"{name} {kind} {shape}" for name, kind, shape in wanted)
        raise CallError(WRONG, f"expected {told}, found {found}")
    if sizes[0] != batch * spec.logits_bytes or sizes[1:] not in ([], [batch * spec.votes_bytes]):
        raise CallError(
            WRONG,
            f"the answer of shape {expected} has {sizes[0]} bytes; Triton's python backend of 2024 answers so under "
            "numpy 2: build the entry again with `ctseg build`",
        )


def _as_sent(patches: Patches, dtype: DType) -> npt.NDArray[Any]:
    if dtype == "FP32":
        return patches
    if dtype == "FP16":
        return patches.astype(np.float16)
    import ml_dtypes

    return patches.astype(ml_dtypes.bfloat16)


def _as_logits(answer: npt.NDArray[Any], dtype: DType) -> Logits:
    if dtype == "BF16":
        return cast(Logits, (answer.astype(np.uint32) << np.uint32(16)).view(np.float32))
    return cast(Logits, answer.astype(np.float32, copy=False))
