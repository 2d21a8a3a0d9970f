"""The course of one request: to which servers it goes, until one has computed it or it has failed."""

import contextlib
import time
from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from ctseg.triton.errors import AWAY, DIED, HICCUPS, KEY_REFUSED, NO_ANSWER, UNAVAILABLE, CallError
from ctseg.triton.rota import Rota
from ctseg.triton.server import Server

_FAILURES_OF_A_REQUEST = 2
_DEATHS_OF_A_REQUEST = 3

T = TypeVar("T", bound=Server[Any])
Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Course(Generic[T, Request, Answer]):
    """One request until it is computed.

    A server that is away, or takes the key no more, is the server's misfortune: the request waits, or goes to another.
    A failure is the request's own if the server that failed it, the second one where there are several, still computes
    what was computed before (if anything was), and then fails the request once more; it is the server's if another
    server computes it, or if the server fails what was computed before. A request whose server or whose model dies with
    it again and again, though it computes others, is what kills it.

    Args:
        rota: Chooses the servers.
        ask: Sends a request to a server; raises :class:`CallError`.
        request: What is sent.
        on_retry: Called each time that it is sent again.
        verdicts: With what status a server says that the request is at fault, whoever gets it.

    Attributes:
        request: What is sent.
        problem: How it failed last.
    """

    def __init__(
        self,
        rota: Rota[T, Request],
        ask: Callable[[T, Request], Answer],
        request: Request,
        on_retry: Callable[[], None],
        verdicts: Collection[str] = (),
    ) -> None:
        self.request = request
        self._on_retry = on_retry
        self._verdicts = verdicts
        self.problem: CallError | None = None
        self._rota = rota
        self._ask = ask
        self._started = time.monotonic()
        self._failures: dict[T, CallError] = {}
        self._silent: T | None = None
        self._has_failed_where_all_is_well = False
        self._collapses = 0
        self._deaths = 0

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._started

    def forget(self) -> None:
        """Let go of how it failed: errors know the frames that they came through, and these the request."""
        self.problem = self._silent = None
        self._failures.clear()

    def hang(self) -> CallError | None:
        """Return how the request failed where the server that it went to is there, and does not answer it."""
        return self.problem if self._silent is not None and self._silent.is_alive() else None

    def run(self) -> Answer:
        """Send the request until it is computed.

        Raises:
            CallError: It cannot be computed.
            NobodyAnswersError: Every server has been away for too long.
            SpecError, ModelNotFoundError: No server serves the model any more.
        """
        while True:
            # a request may be what makes servers fail: those that saw one fail go one by one, beside fresh ones
            with self._rota.alone if self._is_suspect else contextlib.nullcontext() as alone:
                while (answer := self._try()) is None and alone:
                    self._on_retry()
            if answer is not None:
                return answer
            self._on_retry()

    @property
    def _is_suspect(self) -> bool:
        return self._has_failed_where_all_is_well or self._collapses > 0 or self._deaths > 0

    def _try(self) -> Answer | None:
        """Send the request once; return None where it is to be sent again."""
        server = self._rota.take(self._failures, self._started)
        try:
            answer = self._ask(server, self.request)
        except CallError as error:
            self.problem = error
            self._silent = server if error.status == NO_ANSWER else None
            if self._rota.is_closed or error.status in self._verdicts:
                raise
            if error.status == UNAVAILABLE and not server.is_alive():
                self._count_death(server, error)
            elif error.status in AWAY:
                self._rota.away(server, error)
            elif error.status in KEY_REFUSED:
                self._rota.refused_key(server, error)
            elif self._is_at_fault(server, error):
                raise
            return None
        finally:
            self._rota.give_back(server)
        for failed, problem in self._failures.items():
            if failed is not server:
                self._rota.outdone(failed, problem, self.request)
        self._rota.answered(self.request)
        return answer

    def _count_death(self, server: T, error: CallError) -> None:
        """Note that a server is gone that had the request.

        Raises:
            CallError: The request is what kills servers.
        """
        self._deaths += 1
        self._rota.died(server, error)
        if self._deaths >= _DEATHS_OF_A_REQUEST:
            raise CallError(
                DIED,
                f"the server died each of the {self._deaths} times that it had this request, and computed others in "
                f"between: look at the scan, and at the server's log ({error})",
                url=server.url,
            ) from error

    def _is_at_fault(self, server: T, error: CallError) -> bool:
        """Whether the request fails by its own fault, now that a server has failed it."""
        is_second_time = server in self._failures
        self._failures[server] = error
        if len(self._failures) < _FAILURES_OF_A_REQUEST:
            if self._rota.others_are_well(self._failures):
                return False
            if error.status in HICCUPS and not is_second_time:
                return False
        if self._rota.is_well(server):
            # a model that was started again between the failure and the probe is well, too
            is_proven = self._has_failed_where_all_is_well or error.status not in HICCUPS
            self._has_failed_where_all_is_well = True
            return is_proven
        self._failures.clear()
        self._collapses += 1
        return self._collapses >= _DEATHS_OF_A_REQUEST
