"""Which server gets a request: the least loaded of those that are well. The others are looked after meanwhile.

A server is *away* when it refuses, is silent, starts or stops, or has lost the model: it is asked again, on a thread
of its own, until it answers. One that fails what another has computed, or what it computed itself before, is *left
aside*: before it gets work again it has to answer a request that was answered before, the probe.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ctseg.errors import ModelNotFoundError, SpecError
from ctseg.triton.errors import AWAY, CANCELLED, KEY_REFUSED, CallError
from ctseg.triton.server import Server

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
_TOLD_CHARACTERS = 300
_NEW_KEY = "has a token expired? Start the folder again with a new one"


T = TypeVar("T", bound=Server[Any])
Request = TypeVar("Request")


class NobodyAnswersError(Exception):
    """No server that may be asked has answered anything for as long as the caller waits."""


@dataclass(frozen=True)
class Probes(Generic[T, Request]):
    """What a server is asked to prove that it is well.

    Attributes:
        after: Returns what is kept of a request that was computed.
        of: Returns what is kept of a request that one server has failed and another computed.
        blank: Returns what is asked where nothing has been computed yet.
    """

    after: Callable[[Request], Request]
    of: Callable[[Request], Request]
    blank: Callable[[T], Request]


class Rota(Generic[T, Request]):
    """The servers that requests go to, used from any number of threads.

    Args:
        servers: At least one; all give the same answers.
        ask: Sends a request to one server, whatever its state; raises :class:`CallError`.
        timeout_s: How long the servers may be away before :meth:`take` gives up, in seconds.
        probes: What a server is asked to prove that it is well.
        most_per_server: Requests at once of one server.
        most: Requests at once, all servers together.

    Attributes:
        alone: Held by a request that may be what makes servers fail, so that no other such request is on its way.
    """

    def __init__(
        self,
        servers: Sequence[T],
        ask: Callable[[T, Request], object],
        timeout_s: float,
        probes: Probes[T, Request],
        *,
        most_per_server: float = math.inf,
        most: float = math.inf,
    ) -> None:
        self._servers = list(servers)
        self._ask = ask
        self._timeout_s = timeout_s
        self.alone = threading.Lock()
        self._probes = probes
        self._probe: Request | None = None
        self._most_per_server = most_per_server
        self._most = most
        self._watched: set[T] = set()
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def servers(self) -> tuple[T, ...]:
        """All servers, those too that get no work now."""
        with self._changed:
            return tuple(self._servers)

    @property
    def is_closed(self) -> bool:
        """Whether nobody is to wait any longer."""
        return self._is_closed

    def add(self, server: T) -> bool:
        """Let a server have work from now on; return False where the rota is closed."""
        with self._changed:
            if not self._is_closed:
                self._servers.append(server)
                self._changed.notify_all()
            return not self._is_closed

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # --- requests

    def take(self, avoided: Collection[T], since: float) -> T:
        """Choose the least-loaded server that is well; its ``outstanding`` is one higher after it.

        Waits for one as long as the servers may be away, and for room on one that is well as long as it takes.

        Args:
            avoided: Servers that are chosen only where no other is well.
            since: When the caller began to wait, by the monotonic clock.

        Raises:
            NobodyAnswersError: No server is well, and nothing was answered for too long.
            CallError: The rota is closed.
            SpecError, ModelNotFoundError: No server serves the model any more.
        """
        with self._changed:
            while True:
                if self._is_closed:
                    raise CallError(CANCELLED, "the predictor was closed")
                self._check_refusals()
                well = self._well()
                if candidates := [server for server in well if server not in avoided] or well:
                    server = min(candidates, key=lambda s: (s.outstanding, random.random()))
                    if self._has_room(server):
                        server.outstanding += 1
                        return server
                    self._changed.wait(_LOOK_AGAIN_S)
                    continue
                left_s = self.deadline(since) - time.monotonic()
                if left_s <= 0:
                    raise NobodyAnswersError
                self._changed.wait(min(left_s, _LOOK_AGAIN_S))

    def give_back(self, server: T) -> None:
        """Note that a request to a server is done, however it ended."""
        with self._changed:
            server.outstanding -= 1
            self._changed.notify_all()

    def deadline(self, since: float) -> float:
        """Return until when to wait: later and later while any server answers, by the monotonic clock."""
        with self._changed:
            return max(since, *(server.last_answer for server in self._servers)) + self._timeout_s

    def others_are_well(self, avoided: Collection[T]) -> bool:
        """Whether there is a server to ask besides these."""
        with self._changed:
            return any(server not in avoided for server in self._well())

    def problems(self) -> str:
        """Say what is wrong with the servers that get no work."""
        with self._changed:
            away = [server for server in self._servers if not server.is_trusted]
            problems = [f"{server.url}: {_line(server.refusal or server.last_problem)}" for server in away]
            if any(server.last_problem.status in KEY_REFUSED for server in away):
                problems.append(_NEW_KEY)
            return "; ".join(problems)

    def _well(self) -> list[T]:
        return [server for server in self._servers if server.refusal is None and server.is_trusted]

    def _has_room(self, server: T) -> bool:
        busy = sum(server.outstanding for server in self._servers)
        return server.outstanding < self._most_per_server and busy < self._most

    def _check_refusals(self) -> None:
        refusals = [server.refusal for server in self._servers]
        if refusals[0] is not None and None not in refusals:
            raise refusals[0]

    # --- what came of them

    def answered(self, request: Request) -> None:
        """Note what was computed; something of the first request is kept as the probe."""
        if self._probe is None:
            self._probe = self._probes.after(request)

    def away(self, server: T, problem: CallError) -> None:
        """Note that a server is away: it gets no request until it answers again."""
        server.suspect(problem)
        self._watch(server)

    def died(self, server: T, problem: CallError) -> None:
        """Note that a server is gone with a request that may be why: it has to compute something else before it."""
        self._let_prove(server)
        self.away(server, problem)

    def refused_key(self, server: T, problem: CallError) -> None:
        """Note that a server does not take the key any more, whatever the request is: it is away until it does."""
        self._let_prove(server)
        self._leave_aside(server, problem, "refuses the key")

    def _let_prove(self, server: T) -> None:
        """Let a server compute something before it gets work, what was computed before or else a blank."""
        with self._changed:
            server.has_to_prove = True
            if self._probe is None:
                self._probe = self._probes.blank(server)

    def outdone(self, server: T, problem: CallError, request: Request) -> None:
        """Note that a server failed what another has computed: it is left aside until it computes that, too."""
        self._probe = self._probes.of(request)
        self._leave_aside(server, problem, "fails what another server computed")

    def is_well(self, server: T) -> bool:
        """Ask a server that failed for what was computed before; leave it aside if it fails that, too.

        True where nothing was computed yet: nothing is known against it.
        """
        with server.probing:  # others wait for the result
            if not server.is_trusted:
                return False
            if self._probe is None:
                return True
            try:
                self._ask(server, self._probe)
            except CallError as error:
                if error.status in AWAY:
                    self.away(server, error)
                else:
                    self._leave_aside(server, error, "fails what was computed before")
                return False
            return True

    def _leave_aside(self, server: T, problem: CallError, why: str) -> None:
        with self._changed:
            is_new = not server.is_left_aside
            server.has_to_prove = server.is_left_aside = True
        if is_new:
            cure = _NEW_KEY if problem.status in KEY_REFUSED else "look at its log, or start it again"
            told = "%s is left aside: it %s (%s): %s; it is asked again until it answers"
            log.warning(told, server.url, why, _line(problem), cure)
        self.away(server, problem)

    # --- servers that come back

    def _watch(self, server: T) -> None:
        with self._changed:
            if server in self._watched:
                return
            self._watched.add(server)
        threading.Thread(target=self._bring_back, args=(server,), name=f"watch-{server.url}", daemon=True).start()

    def _bring_back(self, server: T) -> None:
        """Check a server again and again, until it is well or serves something else."""
        is_told = server.is_left_aside
        while self._wait_until_due(server):
            try:
                server.check()
                if server.has_to_prove and self._probe is not None:
                    self._ask(server, self._probe)
            except CallError as error:
                server.still_fails(error)
                if not is_told:
                    log.warning("%s is away: %s: it is asked again until it answers", server.url, _line(error))
                is_told = True
                continue
            except (SpecError, ModelNotFoundError) as error:
                log.warning("%s is not asked again: %s", server.url, _line(error))
            else:
                server.forget_failure()
                if is_told:
                    log.info("%s answers again", server.url)
            with self._changed:
                self._watched.discard(server)
                if server.refusal is None:
                    server.is_trusted = True
                self._changed.notify_all()
            return

    def _wait_until_due(self, server: T) -> bool:
        """Wait until a server may be asked again; return False where the rota is closed."""
        with self._changed:
            while not self._is_closed and (left_s := server.try_again_at - time.monotonic()) > 0:
                self._changed.wait(min(left_s, _LOOK_AGAIN_S))
            return not self._is_closed


def _line(problem: Exception) -> str:
    """Return the first line of what is wrong: servers answer with whole tracebacks."""
    return str(problem).strip().split("\n", 1)[0][:_TOLD_CHARACTERS]
