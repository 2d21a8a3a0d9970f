"""Which of the scans that were asked for may begin: as lanes, memory and fairness allow."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ctseg.errors import ServerUnavailableError
from ctseg.predict.estimate import MemoryEstimate, gigabytes
from ctseg.predict.memory import MemoryLimit
from ctseg.predict.memory_limits import Available, available_memory

LANES = 3
"""Scans at once: one is prepared, one is on the network, one is restored."""
SMALL_LANES = 2
"""Small scans beside those."""
SMALL_WINDOWS = 8
"""A small scan has no more; mirrored ones count as often as they are run, so that is one along three axes."""
_RESERVED = 8
"""One part in so many of the memory is for small scans in their own lanes."""
MOST_WAITING = 64
MOST_WAITING_BYTES = 4 << 30
"""Of the voxels that waiting scans hold together; one that waits alone may hold more."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Demand:
    """What one scan asks for.

    Attributes:
        estimate: The memory that it takes once it has begun.
        windows: How many the network runs for it, mirrored ones and those of all members of a recipe counted.
        waiting_bytes: What it holds before it begins.
    """

    estimate: MemoryEstimate
    windows: int
    waiting_bytes: int


class Admission:
    """Begins scans as lanes and memory allow, in order of their windows and those begun before they came, together.

    So short scans overtake long ones, and none is overtaken by one that comes when as many windows as it has itself
    have begun since it came. The first in this order is waited for where it does not fit; only small scans, which have
    lanes and a part of the memory to themselves, begin meanwhile, unless it needs that memory, too.

    Scans in flight share memory as those of a folder run do (:class:`ctseg.predict.memory.MemoryBudget`), but what is
    available is looked at again before each begins: the processes of other entries take of it.

    No thread waits: what may begin is handed to ``start``, by whoever offers a scan or ends one.

    Args:
        start: Has what it is given run on another thread, and loses none: such as the ``submit`` of a pool of
            ``lanes + small_lanes`` threads, as many as ever run at once.
        total_bytes: What all scans in flight may take; None: half of what is available, one by itself all of it.
        lanes: How many run at once.
        small_lanes: How many small ones run beside them.
        most_waiting: How many scans may wait.
        most_waiting_bytes: What they may hold together; one that waits alone may hold more.
        look: Says what memory is available.
        on_change: Told how many scans wait and how many run, after each change, one call at a time; must not raise.
    """

    def __init__(
        self,
        start: Callable[[Callable[[], None]], object],
        total_bytes: int | None = None,
        *,
        lanes: int = LANES,
        small_lanes: int = SMALL_LANES,
        most_waiting: int = MOST_WAITING,
        most_waiting_bytes: int = MOST_WAITING_BYTES,
        look: Callable[[], Available] = available_memory,
        on_change: Callable[[int, int], object] | None = None,
    ) -> None:
        self._start, self._on_change = start, on_change
        self._limit = MemoryLimit(total_bytes, look)
        self._most_waiting, self._most_waiting_bytes = most_waiting, most_waiting_bytes
        self._lanes, self._small_lanes = _Lanes(lanes), _Lanes(small_lanes)
        self._waiting: dict[int, _Scan] = {}
        self._windows_begun = 0
        self._numbers = itertools.count()
        self._is_closed = False
        self._lock, self._telling = threading.Lock(), threading.Lock()

    @property
    def waiting(self) -> int:
        """How many scans wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many scans have begun and not ended."""
        return self._lanes.scans + self._small_lanes.scans

    def offer(self, demand: Demand, work: Callable[[], _T]) -> "Future[_T]":
        """Take a scan in, or refuse it at once.

        Args:
            demand: What it asks for.
            work: Segments it, on another thread.

        Returns:
            What ``work`` returns or raises; or ``ServerUnavailableError``, where this was closed meanwhile, or others
            have taken the memory when its turn comes. Cancelling it gives up a scan that has not begun. A scan ends,
            and its memory is counted as free, when the callbacks of its future are through.

        Raises:
            InputError: It is larger than all the memory.
            ServerUnavailableError: Too many scans wait, they hold too much, or this was closed.
        """
        future: Future[_T] = Future()
        with self._lock:
            if self._is_closed:
                raise _closed()
            self._limit.check(demand.estimate, self._used)
            number = next(self._numbers)
            self._waiting[number] = _Scan(demand, work, future, (self._windows_begun + demand.windows, number))
            turns = self._take_turns()
            refusal = self._refusal() if number in self._waiting else None
            if refusal is not None:
                del self._waiting[number]
        self._begin(turns)
        if refusal is not None:
            raise refusal
        future.add_done_callback(lambda _: self._forget(number))
        return future

    def close(self) -> None:
        """Begin no scan any more: those that wait fail with ``ServerUnavailableError``, those that run go on."""
        with self._lock:
            self._is_closed = True
            waiting, self._waiting = self._waiting, {}
        for scan in waiting.values():
            scan.fail(_closed())
        self._tell()

    @property
    def _used(self) -> int:
        return self._lanes.used + self._small_lanes.used

    def _refusal(self) -> ServerUnavailableError | None:
        """Return why the scan that came last cannot wait."""
        count, held = len(self._waiting), sum(scan.demand.waiting_bytes for scan in self._waiting.values())
        if count <= self._most_waiting and (count == 1 or held <= self._most_waiting_bytes):
            return None
        return ServerUnavailableError(
            f"expected at most {self._most_waiting} waiting scans of {gigabytes(self._most_waiting_bytes)}, found "
            f"{count} of {gigabytes(held)} with this one: ask again later, or another server"
        )

    def _take_turns(self) -> "list[_Turn]":
        """Take what begins or fails now from those that wait; needs the lock, and :meth:`_begin` without it."""
        turns = []
        while self._waiting and (turn := self._next_turn()) is not None:
            del self._waiting[turn.scan.number]
            if turn.lanes is not None:
                turn.lanes.enter(turn.scan)
                self._windows_begun += turn.scan.demand.windows
            turns.append(turn)
        return turns

    def _next_turn(self) -> "_Turn | None":
        if not (self._lanes.has_room or self._small_lanes.has_room):
            return None
        now = self._limit.now()
        room = _Room.of(self._limit, now.size, self._lanes.used, self._small_lanes.used)
        ordered = sorted(self._waiting.values(), key=lambda scan: scan.tag)
        first = ordered[0]
        if self._small_lanes.has_room:
            for scan in ordered:
                keeps_back = scan is not first and first.size + scan.size > room.alone
                if scan.demand.windows <= SMALL_WINDOWS and scan.size <= room.small and not keeps_back:
                    return _Turn(scan, self._small_lanes)
        if self._lanes.has_room and first.size <= room.ordinary:
            return _Turn(first, self._lanes)
        if self._used == 0:  # no scan ends here that could make room
            return _Turn(first, None, _taken(first, now))
        return None

    def _begin(self, turns: "list[_Turn]") -> None:
        for turn in turns:
            if turn.lanes is None:
                turn.scan.fail(turn.error)
                continue
            try:
                self._start(partial(self._run, turn.scan, turn.lanes))
            except Exception as error:  # such as a pool that was shut down: nobody else would answer
                turn.scan.fail(error)
                self._end(turn.scan, turn.lanes)
        self._tell()

    def _tell(self) -> None:
        if self._on_change is not None:
            with self._telling:  # what is told last is what is so
                self._on_change(self.waiting, self.running)

    def _run(self, scan: "_Scan", lanes: "_Lanes") -> None:
        try:
            scan.run()
        finally:
            self._end(scan, lanes)

    def _end(self, scan: "_Scan", lanes: "_Lanes") -> None:
        with self._lock:
            lanes.leave(scan)
            turns = self._take_turns()
        self._begin(turns)

    def _forget(self, number: int) -> None:
        """Let a scan that was given up wait no more; others may have waited for its turn."""
        with self._lock:
            scan = self._waiting.pop(number, None)
            if scan is None:
                return
            turns = self._take_turns()
        scan.future.set_running_or_notify_cancel()
        self._begin(turns)


@dataclass(frozen=True, eq=False)
class _Scan:
    demand: Demand
    work: Callable[[], Any]
    future: "Future[Any]"
    tag: tuple[int, int]

    @property
    def number(self) -> int:
        return self.tag[1]

    @property
    def size(self) -> int:
        return self.demand.estimate.peak_bytes

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:  # whatever it is belongs to whoever waits for the scan
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def fail(self, error: Exception | None) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Lanes:
    """Scans that run beside each other, and what they take together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.scans = 0
        self.used = 0

    @property
    def has_room(self) -> bool:
        return self.scans < self._most

    def enter(self, scan: _Scan) -> None:
        self.scans += 1
        self.used += scan.size

    def leave(self, scan: _Scan) -> None:
        self.scans -= 1
        self.used -= scan.size


@dataclass(frozen=True)
class _Turn:
    """What becomes of a scan now: it begins in a lane, or fails."""

    scan: _Scan
    lanes: _Lanes | None
    error: ServerUnavailableError | None = None


@dataclass(frozen=True)
class _Room:
    """The memory that there is for one more scan, in bytes.

    Attributes:
        ordinary: For one in an ordinary lane.
        small: For one in a lane for small ones.
        alone: For one in an ordinary lane, once the others in ordinary lanes have ended.
    """

    ordinary: int
    small: int
    alone: int

    @classmethod
    def of(cls, limit: MemoryLimit, now: int, used: int, used_by_small: int) -> "_Room":
        """Return what there is now.

        Args:
            limit: What there is in all.
            now: What one more may take at most; what those that run will take is in it, and perhaps already taken.
            used: What scans in ordinary lanes take.
            used_by_small: What those in lanes for small ones take.
        """
        if limit.is_given:
            share = now
        else:
            share = min(limit.whole.size, now + used + used_by_small) // 2
        reserve = share // _RESERVED
        alone = now - used_by_small + (0 if limit.is_given else used)
        beside = share - reserve - used
        return cls(
            ordinary=min(now, beside if used else max(beside, alone)),
            small=min(reserve - used_by_small, share - used - used_by_small),
            alone=alone,
        )


def _closed() -> ServerUnavailableError:
    return ServerUnavailableError("no scan begins any more, this server is stopping: ask another one, or later")


def _taken(scan: _Scan, now: Available) -> ServerUnavailableError:
    return ServerUnavailableError(
        f"expected {gigabytes(scan.size)} for a scan, found {gigabytes(now.size)} ({now.bound}), since others take the "
        "rest: ask again later, or another server"
    )
