"""Whole scans that are sent: retried, watched, given up; and whose fault a failure is."""

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ctseg.errors import (
    InferenceFailedError,
    InputError,
    ServerAwayError,
    ServerTimeoutError,
    SpecError,
)
from ctseg.files.volume import Volume, volume_from_array
from ctseg.predict.contract import contract_of
from ctseg.predict.progress import Progress, StageClock
from ctseg.predict.segment import CaseContext, WindowOptions
from ctseg.predict.whole_scan import ScanProgress
from ctseg.triton.errors import INTERNAL, INVALID_ARGUMENT, UNAVAILABLE, UNIMPLEMENTED, CallError
from tests.support.fake_scans import SPEC, FakeScanClient, SentScan, scans_to
from tests.support.live_triton import wait_for
from tests.support.toy_models import toy_spec

REFUSED = CallError(INVALID_ARGUMENT, "channel CT: expected intensities from 0 to 255")
BROKEN = CallError(INTERNAL, "out of luck")


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctseg.triton.whole_scan.LOOK_S", 0.01)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def volume(first: int = 7) -> Volume:
    voxels = np.random.default_rng(0).integers(-9, 9, (2, 5, 6, 7)).astype(np.int16)
    voxels[0, 0, 0, 0] = first
    return volume_from_array(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))


def at_work(name: str, done: int, windows: int = 8) -> ScanProgress:
    return ScanProgress(request=name, state="running", windows_done=done, windows=windows, running=1)


def waiting(name: str) -> ScanProgress:
    return ScanProgress(request=name, state="waiting", waiting=1, running=1)


class Told(Progress):
    def __init__(self) -> None:
        self.windows: list[int] = []

    def windows_planned(self, count: int) -> None:
        self.windows.append(count)

    def windows_done(self, count: int) -> None:
        self.windows.append(-count)


# --- what travels, and what comes of it


def test_a_request_says_all_that_labels_depend_on_and_the_answer_says_what_became_of_it() -> None:
    client = FakeScanClient()
    client.answer_with = lambda scan: scan.answer(warnings=("look at it", contract_of(SPEC).doubt))
    scan = volume_from_array(volume().voxels, np.diag([-1.0, -1.0, 3.0, 1.0]), "NibabelIOWithReorient")
    with scans_to(client, windows=WindowOptions(0.75, mirroring=False)) as segmenter:
        result = segmenter.segment(scan)
        assert [runner.answers for runner in segmenter.identity.runners] == [1]
    (sent,) = client.scans
    assert sent.parameters == {
        "tile_step_size": "0.75", "mirroring": False, "memory_order": "z -y -x", "spec_digest": client.digest
    }  # fmt: skip
    assert len(bytes.fromhex(sent.id)) == 16
    assert sent.outputs == ["labels", "report"]
    np.testing.assert_array_equal(result.labels, scan.voxels[0] > 0)
    assert (result.windows, result.warnings) == (8, ("look at it",))
    assert result.bytes_sent == 2 * 2 * 5 * 6 * 7 + 24
    assert result.server_seconds["waited"] == 0.25


@pytest.mark.parametrize(
    ("votes", "agreement", "asks"),
    [({"folds": 3}, None, True), ({"folds": 3}, True, True), ({"folds": 3}, False, False), (None, None, False),
     (None, True, False)],
)  # fmt: skip
def test_agreement_is_asked_for_by_default_of_a_network_with_votes_and_never_of_one_without(
    votes: object, agreement: bool | None, asks: bool
) -> None:
    client = FakeScanClient()
    client.answer_with = lambda scan: scan.answer(agreement={"liver": 0.5} if "agreement" in scan.parameters else {})
    with scans_to(client, windows=WindowOptions(agreement=agreement), network=toy_spec(votes=votes)) as segmenter:
        result = segmenter.segment(volume())
    assert client.scans[0].parameters.get("agreement") == (True if asks else None)
    assert result.agreement == ({"liver": 0.5} if asks else {})


def test_label_maps_come_deflated_from_elsewhere() -> None:
    client = FakeScanClient("gpu1:8001")
    with scans_to(client) as segmenter:
        np.testing.assert_array_equal(segmenter.segment(volume()).labels, volume().voxels[0] > 0)
    assert client.scans[0].outputs == ["labels_deflated", "report"]


# --- whose fault a failure is


def test_a_scan_that_a_server_refuses_is_at_fault_and_is_sent_to_no_other() -> None:
    clients = [FakeScanClient("one:1"), FakeScanClient("two:1")]
    for client in clients:
        client.broken = REFUSED
    with scans_to(*clients) as segmenter:
        with pytest.raises(InputError, match=r"toy_scan at (one|two):1 cannot use the scan: channel CT: expected"):
            segmenter.segment(volume())
        assert all(server.is_trusted for server in segmenter._rota.servers)
    assert sum(len(client.scans) for client in clients) == 1


def test_a_server_that_takes_no_scans_any_more_is_not_asked_again_and_another_is() -> None:
    clients = [FakeScanClient("one:1"), FakeScanClient("two:1")]
    with scans_to(*clients) as segmenter:
        clients[0].broken = CallError(UNIMPLEMENTED, "ctseg is not installed")
        for _ in range(20):
            segmenter.segment(volume())
        assert len(clients[0].scans) <= 1
        clients[1].broken = CallError(UNIMPLEMENTED, "ctseg is not installed")
        clients[0].broken = clients[1].broken
        with pytest.raises(SpecError, match="takes no whole scans: ctseg is not installed"):
            segmenter.segment(volume())


def test_a_scan_that_one_server_fails_is_segmented_by_another_and_the_first_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    works, broken = FakeScanClient("works:1"), FakeScanClient("broken:1")
    broken.broken = BROKEN
    with scans_to(works, broken) as segmenter:
        for _ in range(20):
            segmenter.segment(volume())
    assert caplog.text.count("broken:1 is left aside: it fails what another server computed") == 1


@pytest.mark.parametrize("how", [BROKEN, None])
def test_a_scan_that_the_only_server_fails_again_and_again_fails(how: CallError | None) -> None:
    client = FakeScanClient()
    with scans_to(client) as segmenter:
        segmenter.segment(volume())

        def answer(scan: SentScan) -> list[Any]:
            if scan.voxels[0, 0, 0, 0] != 7:
                return scan.answer()  # what it is asked to prove that it is well
            if how is not None:
                raise CallError(how.status, how.text)
            return scan.answer(request="another")

        client.answer_with = answer
        scan = volume()
        known = weakref.ref(scan)
        gc.disable()  # which looks for cycles too seldom for scans of a gigabyte
        try:
            with pytest.raises(InferenceFailedError, match=r"out of luck|the answer to another request") as caught:
                segmenter.segment(scan)
            del scan, caught
            client.answer_with = None
            assert known() is None, "a scan that failed is forgotten"
        finally:
            gc.enable()


def test_a_scan_of_a_server_that_has_gone_is_sent_to_another_and_the_first_is_told_when_it_is_back(
    pool: ThreadPoolExecutor,
) -> None:
    dies, stays = FakeScanClient("dies:1"), FakeScanClient("stays:1")
    stays.broken = CallError(UNAVAILABLE, "too many wait: ask again")
    with scans_to(dies, stays) as segmenter:
        dies.holds = True
        answer = pool.submit(segmenter.segment, volume())
        dies.wait_until_held()
        (first,) = dies.scans
        dies.gone = CallError(UNAVAILABLE, "Socket closed")
        dies.fail(first.id, "StatusCode.UNAVAILABLE", "Socket closed")
        stays.broken = None
        np.testing.assert_array_equal(answer.result(240).labels, volume().voxels[0] > 0)
        dies.gone, dies.holds = None, False
        stays.gone = CallError(UNAVAILABLE, "connection refused")
        segmenter.segment(volume())
        told = dies.events.index(f"cancel {first.id}")
        assert all(event.startswith("scan") for event in dies.events[told + 1 :])
        assert dies.events[:told] == [f"scan {first.id}"], "no scan was sent before"


def test_every_server_away_is_told_and_is_no_failure_of_the_case() -> None:
    client = FakeScanClient()
    with scans_to(client, timeout_s=0.5) as segmenter:
        client.gone = CallError(UNAVAILABLE, "connection refused")
        with pytest.raises(ServerAwayError, match=r"toy_scan: no server has computed anything for 0.5 s: .*refused"):
            segmenter.segment(volume())


# --- signs of life


def counting(make: Callable[[str, int], ScanProgress]) -> Callable[[str], ScanProgress]:
    numbers = itertools.count(1)
    return lambda name: make(name, next(numbers))


@pytest.mark.parametrize(
    ("progress", "computed", "controls"),
    [
        (lambda name, looks: at_work(name, looks, 10_000), 0, None),
        (lambda name, _: at_work(name, 0, 0), 0, None),
        (lambda name, _: at_work(name, 8, 8), 0, None),
        (lambda name, _: waiting(name), None, None),
        (lambda name, _: waiting(name), 1, None),
        (lambda name, _: at_work(name, 3, 8), 1, None),
        (lambda name, _: waiting(name), 1, CallError(UNAVAILABLE, "version 1 is not at ready state")),
        (lambda name, _: waiting(name), None, CallError(UNAVAILABLE, "version 1 is not at ready state")),
    ],
    ids=[
        "windows come back", "prepared", "restored", "waits, nobody says", "others' windows come back",
        "windows of others come back", "replaced, its network runs", "replaced, nobody says",
    ],
)  # fmt: skip
def test_a_scan_that_is_worked_on_is_waited_for_however_long_it_takes(
    progress: Any, computed: int | None, controls: CallError | None, pool: ThreadPoolExecutor
) -> None:
    client = FakeScanClient()
    with scans_to(client, timeout_s=0.1) as segmenter:
        client.holds, client.progress, client.controls_fail = True, counting(progress), controls
        client.computed = None if computed is None else itertools.count(0, computed)
        answer = pool.submit(segmenter.segment, volume())
        client.wait_until_held()
        wait_for(lambda: client.looks > 40 or answer.done())
        client.release()
        assert answer.result(240).windows == 8
    assert not any("cancel" in event for event in client.events)


@pytest.mark.parametrize(
    "progress",
    [lambda name, _: at_work(name, 3, 8), lambda name, _: ScanProgress(request=name, state="unknown")],
    ids=["its windows do not come back", "nobody knows it"],
)
def test_a_scan_without_a_sign_of_life_is_given_up_there_before_it_fails(
    progress: Any, pool: ThreadPoolExecutor
) -> None:
    client = FakeScanClient()
    with scans_to(client, timeout_s=0.3) as segmenter:
        client.holds, client.progress = True, counting(progress)
        with pytest.raises(ServerTimeoutError, match=r"no sign of the scan for 0.3 s"):
            segmenter.segment(volume())
        (scan,) = client.scans
    assert client.events == [f"scan {scan.id}", f"cancel {scan.id}"]


def test_a_case_that_takes_longer_than_it_may_is_given_up_and_not_sent_again() -> None:
    client = FakeScanClient()
    with scans_to(client, windows=WindowOptions(timeout_s=0.2)) as segmenter:
        client.holds, client.progress = True, counting(lambda name, looks: at_work(name, looks, 10_000))
        with pytest.raises(ServerTimeoutError, match=r"was not segmented within 0.2 s") as caught:
            segmenter.segment(volume())
    assert caught.value.settings == ("case_timeout_s",)
    assert client.events == [f"scan {client.scans[0].id}", f"cancel {client.scans[0].id}"]


def test_the_time_of_a_case_does_not_run_while_it_waits_for_its_turn(pool: ThreadPoolExecutor) -> None:
    client = FakeScanClient()
    with scans_to(client, windows=WindowOptions(timeout_s=0.01)) as segmenter:
        client.holds, client.progress, client.computed = True, waiting, itertools.count()
        answer = pool.submit(segmenter.segment, volume())
        client.wait_until_held()
        wait_for(lambda: client.looks > 20 or answer.done())
        client.release()
        assert answer.result(240).windows == 8


def test_aborting_ends_all_calls_and_tells_the_server(pool: ThreadPoolExecutor) -> None:
    client = FakeScanClient()
    with scans_to(client) as segmenter:
        client.holds = True
        answers = [pool.submit(segmenter.segment, volume()) for _ in range(5)]
        client.wait_until_held(3)
        segmenter.abort()
        for answer in answers:
            with pytest.raises(CancelledError):
                answer.result(240)
        assert len(client.scans) == 3, "more than three are not sent to one server"
        told = {event for event in client.events if event.startswith("cancel")}
        assert told == {f"cancel {scan.id}" for scan in client.scans}
        with pytest.raises(CancelledError):
            segmenter.segment(volume())
    assert client.is_closed


def test_a_call_that_cannot_be_given_up_by_name_is_cancelled(pool: ThreadPoolExecutor) -> None:
    client = FakeScanClient()
    with scans_to(client) as segmenter:
        client.holds, client.controls_fail = True, CallError(UNAVAILABLE, "not at ready state")
        answer = pool.submit(segmenter.segment, volume())
        client.wait_until_held()
        segmenter.abort()
        with pytest.raises(CancelledError):
            answer.result(240)
    assert client.events[-1] == f"gRPC cancel {client.scans[0].id}"


def test_a_person_is_told_of_each_window_once_however_often_the_scan_is_sent(pool: ThreadPoolExecutor) -> None:
    client, told = FakeScanClient(), Told()
    with scans_to(client) as segmenter:
        client.holds, client.progress = True, lambda name: at_work(name, 5)
        answer = pool.submit(segmenter.segment, volume(), CaseContext(clock=StageClock("case", told)))
        client.wait_until_held()
        wait_for(lambda: told.windows)
        client.holds, client.progress = False, lambda name: at_work(name, 0)
        client.fail(client.scans[0].id, "StatusCode.UNAVAILABLE", "restarted")
        assert answer.result(240).windows == 8
    assert told.windows == [8, -5, -3]


# --- which entries are used


@pytest.mark.parametrize("version", [None, 1])
def test_an_entry_of_another_digest_is_not_used(version: int | None) -> None:
    client = FakeScanClient(digest="f" * 64)
    told = r"toy at 127.0.0.1:1: expected a version with the spec .*, found ffffffffffff in version 1"
    with pytest.raises(SpecError, match=told), scans_to(client, version=version):
        pass


def test_as_many_cases_are_in_flight_as_keep_all_servers_busy(pool: ThreadPoolExecutor) -> None:
    clients = [FakeScanClient(f"gpu{number}:1") for number in range(3)]
    with scans_to(*clients) as segmenter:
        assert segmenter.cases_in_flight == 9
        for client in clients:
            client.holds = True
        answers: list[Future[Any]] = [pool.submit(segmenter.segment, volume()) for _ in range(6)]
        for client in clients:
            client.wait_until_held(2)
            client.holds = False
        for client in clients:
            client.release()
        assert {answer.result(240).windows for answer in answers} == {8}
    with scans_to(*clients, max_in_flight=2) as segmenter:
        assert segmenter.cases_in_flight == 2
