"""CaseSegmenter over Triton's gRPC protocol: a whole scan is sent, and its labels come back.

It must be used in the process that made it, as :mod:`ctseg.triton.predictor`.
"""

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctseg.arrays import LabelMap
from ctseg.errors import CtsegError, InputError, ServerAwayError, ServerTimeoutError, SpecError
from ctseg.files.volume import Volume, VolumeHeader
from ctseg.predict.contract import ScanContract
from ctseg.predict.estimate import MemoryEstimate, estimate_sending
from ctseg.predict.predictor import Identity, Runner
from ctseg.predict.progress import StageClock
from ctseg.predict.segment import CaseContext, Scan, Segmentation, WindowOptions
from ctseg.predict.whole_scan import (
    AGREEMENT,
    LABELS,
    LABELS_DEFLATED,
    MEMORY_ORDER,
    MIRRORING,
    REPORT,
    STEP_SIZE,
    memory_order_of,
    order_to_text,
)
from ctseg.triton.addresses import address_of
from ctseg.triton.arrivals import Arrivals
from ctseg.triton.course import Course
from ctseg.triton.errors import (
    CANCELLED,
    INVALID_ARGUMENT,
    NO_ANSWER,
    NOT_FOUND,
    UNIMPLEMENTED,
    CallError,
    call_error_of,
    server_error_of,
)
from ctseg.triton.options import ClientOptions
from ctseg.triton.rota import NobodyAnswersError, Probes, Rota
from ctseg.triton.scan_server import ScanServer, WantedScans, connect_scan_server
from ctseg.triton.scan_tensors import ScanAnswer, answer_of, check_size, sending_bytes, tensors_of
from ctseg.triton.scan_watch import LOOK_S, ScanWatch, WindowsTold

log = logging.getLogger(__name__)

TRANSPORT = "whole scans"
"""How scans travel, for reports."""
SCANS_PER_SERVER = 3
"""One is prepared there, one is on the network, one is restored."""
_ID_BYTES = 16
_DRAIN_TIMEOUT_S = 10.0
_END_OF_GIVEN_UP_S = 2.0
_PROBE_SIDE = 4


@dataclass(frozen=True, eq=False)
class _Case:
    """One scan to be segmented, however often it is sent."""

    scan: Scan
    previous: LabelMap | None
    clock: StageClock
    told: WindowsTold


def connect_scans(
    urls: Sequence[str],
    wanted: WantedScans,
    contract: ScanContract,
    windows: WindowOptions | None = None,
    options: ClientOptions | None = None,
) -> "ScanSegmenter":
    """Connect to one or more Triton servers that take whole scans for the same model or recipe.

    One server that answers is enough to begin: the others get work when they come.

    Args:
        urls: ``host:port`` of each server's gRPC endpoint, ``grpcs://host:port`` where it is encrypted.
        wanted: The entry.
        contract: Of the model or recipe.
        windows: How the servers lay windows and run them.
        options: How to talk to them.

    Raises:
        SetupError: A URL or a certificate file cannot be used.
        SpecError: A server takes no whole scans for this model, with this digest.
        ServerError: See its children; ``ServerUnavailableError`` after ``connect_timeout_s``.
    """
    options = options or ClientOptions()
    arrivals = Arrivals(
        list(dict.fromkeys(map(address_of, urls))),
        lambda address, on_wait: connect_scan_server(address, wanted, options, on_wait),
        options.connect_timeout_s,
    )
    try:
        return ScanSegmenter(arrivals, wanted, contract, windows or WindowOptions(), options)
    except BaseException:
        arrivals.close()
        raise


class ScanSegmenter:
    """Sends whole scans to servers that cut the windows themselves; made by :func:`connect_scans`.

    Args:
        arrivals: The first contact with the servers.
        wanted: The entry.
        contract: Of the model or recipe.
        windows: How the servers lay windows and run them.
        options: How to talk to them.
    """

    def __init__(
        self,
        arrivals: Arrivals[ScanServer],
        wanted: WantedScans,
        contract: ScanContract,
        windows: WindowOptions,
        options: ClientOptions,
    ) -> None:
        self._wanted = wanted
        self._contract = contract
        self._windows = windows
        self._options = options
        # an older server knows no such parameter; one that serves a network with votes does
        has_votes = any(spec.votes for spec in wanted.networks.values())
        self._asks_for_agreement = has_votes and windows.agreement is not False
        self._closing = threading.Event()
        self._arrivals = arrivals
        self._rota: Rota[ScanServer, _Case] = Rota(
            arrivals.first(), self._ask, options.timeout_s, Probes(self._blank, self._blank, self._blank),
            most_per_server=SCANS_PER_SERVER, most=options.max_in_flight or float("inf"),
        )  # fmt: skip
        arrivals.take_in_later(self._take_in)

    @property
    def identity(self) -> Identity:
        """The model or recipe, the version that the first server runs, and all servers."""
        servers = self._rota.servers
        first = servers[0].served
        members = [
            Identity(network.spec.name, network.version, network.digest, self._arrivals.urls, TRANSPORT)
            for network in first.networks
        ]
        return Identity(
            model=self._contract.name,
            version=first.version,
            digest=self._contract.digest,
            servers=self._arrivals.urls,
            transport=TRANSPORT,
            members=tuple(members) if self._wanted.is_recipe else (),
            runners=tuple(
                Runner(
                    server=server.url,
                    model=network.spec.name,
                    runtime=network.spec.parity.detail,
                    relative_l2=network.spec.parity.relative_l2,
                    answers=server.answers,
                )
                for server in servers
                for network in server.served.networks
            ),
        )

    @property
    def contract(self) -> ScanContract:
        """What it takes and gives."""
        return self._contract

    @property
    def cases_in_flight(self) -> int:
        """See :attr:`ctseg.predict.segmenter.CaseSegmenter.cases_in_flight`."""
        wanted = SCANS_PER_SERVER * len(self._arrivals.urls)
        return min(wanted, self._options.max_in_flight or wanted)

    def estimate(self, header: VolumeHeader, *, saves_probabilities: bool) -> MemoryEstimate:
        """See :meth:`ctseg.predict.segmenter.CaseSegmenter.estimate`; what the servers take is theirs to say."""
        if saves_probabilities:
            raise InputError(
                f"{self._contract.name}: servers send no probabilities", settings=("where", "save_probabilities")
            )
        sending = sending_bytes(header, self._contract)
        return estimate_sending(header, next(iter(self._wanted.networks.values())), sending)

    def segment(self, volume: Volume, context: CaseContext | None = None) -> Segmentation:
        """See :meth:`ctseg.predict.segmenter.CaseSegmenter.segment`.

        A scan whose server went away is sent to another, or again, until nobody has been there for ``timeout_s``; what
        a server was sent is given up there before.

        Raises:
            InputError: The scan cannot be segmented by this model, or is too large for a message.
            ServerAwayError: Every server has been away for ``timeout_s``.
            ServerError: Another of its children: the scan itself could not be computed.
            SpecError: The model was replaced by another one under way.
            CancelledError: It was aborted.
        """
        context = context or CaseContext()
        case = _Case(Scan.of(volume), context.previous, context.clock, WindowsTold(context.clock.progress))
        course = Course(self._rota, self._ask, case, lambda: None, verdicts=(INVALID_ARGUMENT,))
        try:
            answer = course.run()
        except CallError as error:
            if self._closing.is_set():
                raise CancelledError from error
            raise self._error_of(error, course.seconds) from error.__cause__
        except NobodyAnswersError as error:
            raise self._away_error(course) from error
        finally:
            course.forget()
        return answer

    def abort(self) -> None:
        """See :meth:`ctseg.predict.segmenter.CaseSegmenter.abort`; the servers are told that nobody waits."""
        self._closing.set()
        self._rota.close()

    def close(self) -> None:
        """Stop waiting and close the connections; may be called twice."""
        self.abort()
        self._arrivals.close()
        for server in self._rota.servers:
            server.wait_until_idle(_DRAIN_TIMEOUT_S)
            server.close()

    def _take_in(self, server: ScanServer) -> None:
        log.info("%s has come and gets work, too", server.url)
        if not self._rota.add(server):
            server.close()

    def _blank(self, _: object) -> _Case:
        """Return a scan of zeros with a window or a few for every network."""
        specs = self._wanted.networks.values()
        spacings = []
        for spec in specs:
            transposed = spec.spacing_of_network((1.0, 1.0, 1.0))
            spacings.append([transposed[axis] for axis in spec.transpose_backward])
        z, y, x = (max(side) for side in zip(*spacings, strict=True))
        shape = (_PROBE_SIDE, _PROBE_SIDE, _PROBE_SIDE)
        scan = Scan(np.zeros((len(self._contract.channels), *shape), np.int16), (z, y, x))
        previous = np.zeros(shape, np.uint16) if self._contract.previous_stage else None
        clock = StageClock()
        return _Case(scan, previous, clock, WindowsTold(clock.progress))

    # --- one request

    def _ask(self, server: ScanServer, case: _Case) -> Segmentation:
        """Send a scan to one server and return its labels.

        Raises:
            CallError: No answer, or a wrong one.
            InputError: It is too large for a message.
            ServerTimeoutError: The case took longer than it may.
        """
        try:
            return self._exchange(server, case)
        except CallError as error:
            error.url = server.url
            if error.status == UNIMPLEMENTED:
                server.refusal = SpecError(f"{self._wanted.entry} at {server.url} takes no whole scans: {error.text}")
                error.status = NOT_FOUND
            raise

    def _exchange(self, server: ScanServer, case: _Case) -> Segmentation:
        request_id = secrets.token_hex(_ID_BYTES)
        call = _Call(server, request_id, self._closing)
        with case.clock.stage("prepare"):
            tensors = tensors_of(case.scan, case.previous)
            sent = check_size(tensors, case.scan, self._contract, self._options.max_message_bytes)
            parameters: dict[str, str | bool] = {
                STEP_SIZE: repr(self._windows.tile_step_size),
                MIRRORING: self._windows.mirroring,
                MEMORY_ORDER: order_to_text(memory_order_of(case.scan.voxels)),
            }
            if self._asks_for_agreement:
                parameters[AGREEMENT] = True
        with case.clock.stage("network"):
            outputs = (LABELS if server.is_local else LABELS_DEFLATED, REPORT)
            call.send(tensors, outputs, parameters)
            del tensors
            watch = ScanWatch(server, request_id, sent, case.told)
            response = call.answer(watch, self._options.timeout_s, self._windows.timeout_s)
        with case.clock.stage("restore"):
            answer: ScanAnswer = answer_of(response, request_id, case.scan, self._contract)
        server.answered()
        report = answer.report
        case.told.tell(report.windows, report.windows)
        return Segmentation(
            answer.labels, report.windows, sent, answer.bytes_received,
            tuple(warning for warning in report.warnings if warning != self._contract.doubt),  # told once for a run
            server_seconds={stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
            agreement=report.agreement,
        )  # fmt: skip

    def _error_of(self, error: CallError, waited_s: float) -> CtsegError:
        at = error.url or ", ".join(self._arrivals.urls)
        what = f"{self._wanted.entry} at {at}"
        if error.status == INVALID_ARGUMENT:
            return InputError(f"{what} cannot use the scan: {error.text}")
        return server_error_of(error, f"{what} gave no labels within {waited_s:.1f} s")

    def _away_error(self, course: Course[ScanServer, _Case, Segmentation]) -> CtsegError:
        if hang := course.hang():
            return self._error_of(hang, course.seconds)
        return ServerAwayError(
            f"{self._wanted.entry}: no server has computed anything for {self._options.timeout_s:g} s: "
            f"{self._rota.problems()}: what is not done is left, start the folder again when a server answers",
            settings=("timeout_s",),
        )


class _Call:
    """One request on its way; given up at the server before nobody waits for it any more.

    Args:
        server: Who is to answer.
        request_id: Of the request.
        closing: When it is set, nobody waits any longer.
    """

    def __init__(self, server: ScanServer, request_id: str, closing: threading.Event) -> None:
        self._server = server
        self._request_id = request_id
        self._closing = closing
        self._done = threading.Event()
        self._box: list[Any] = [None, None]

    def send(self, tensors: Sequence[Any], outputs: Sequence[str], parameters: dict[str, str | bool]) -> None:
        """Send it.

        Raises:
            CallError: It could not be sent.
        """

        def receive(result: Any, error: Any) -> None:
            self._box[:] = [result, error]
            self._done.set()

        self._cancel = self._server.send_scan(tensors, outputs, parameters, receive, self._request_id)

    def answer(self, watch: ScanWatch, timeout_s: float, case_timeout_s: float | None) -> Any:
        """Wait for the answer; return Triton's message.

        Args:
            watch: Looks after it.
            timeout_s: Longest time without a sign of life.
            case_timeout_s: Longest time from when it was seen at work first; None: no limit.

        Raises:
            CallError: No answer, or an error.
            ServerTimeoutError: The case took longer than it may.
        """
        try:
            while not self._done.wait(_pause(watch, timeout_s, case_timeout_s)):
                self._go_on(watch, timeout_s, case_timeout_s)
        except BaseException:
            self._give_up()
            raise
        result, error = self._box
        if error is not None:
            if call_error_of(error).status not in _ENDED:
                self._server.give_up(self._request_id)
            raise call_error_of(error) from error
        return result.get_response()

    def _go_on(self, watch: ScanWatch, timeout_s: float, case_timeout_s: float | None) -> None:
        if self._closing.is_set():
            raise CallError(CANCELLED, "the segmenter was closed")
        watch.look()
        now = time.monotonic()
        if case_timeout_s is not None and watch.began is not None and now >= watch.began + case_timeout_s:
            raise ServerTimeoutError(
                f"{self._server.url}: the scan was not segmented within {case_timeout_s} s: allow the case more time, "
                "or look at the server's load",
                settings=("case_timeout_s",),
            )
        if now >= watch.last_sign + timeout_s and not self._done.is_set():
            raise CallError(NO_ANSWER, f"no sign of the scan for {timeout_s:g} s")

    def _give_up(self) -> None:
        """Let the server end the work; the call itself is cancelled where that does not end it."""
        if not (self._server.give_up(self._request_id) and self._done.wait(_END_OF_GIVEN_UP_S)):
            self._cancel()


_ENDED = (INVALID_ARGUMENT, UNIMPLEMENTED)
"""With what the server itself says that it does not work on the scan any more."""


def _pause(watch: ScanWatch, timeout_s: float, case_timeout_s: float | None) -> float:
    """Return how long to wait before the next look."""
    ends = [watch.last_sign + timeout_s]
    if case_timeout_s is not None and watch.began is not None:
        ends.append(watch.began + case_timeout_s)
    return min(LOOK_S, max(0.0, min(ends) - time.monotonic()))
