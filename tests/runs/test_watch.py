"""A watcher and a real PACS; the network is one whose answer is known."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread

from ctseg.errors import PacsAwayError
from ctseg.files.dicom.choosing import SeriesRules
from ctseg.files.dicom.objects import is_same_data_set
from ctseg.pacs.fetch import fetch_series
from ctseg.pacs.find import find_series
from ctseg.pacs.options import PacsOptions
from ctseg.pacs.session import PacsSession
from ctseg.predict.options import BatchOptions
from ctseg.predict.presence import Presence
from ctseg.predict.segmenter import WindowSegmenter
from ctseg.presentation import LabelPresentation
from ctseg.runs.watch import Watcher, WatchOptions
from ctseg.runs.watch_notes import WatchSummary
from tests.support.canned_pacs import Said, canned_pacs
from tests.support.dicom_series import ct_series, write_series
from tests.support.dicom_tools import required_tool
from tests.support.orthanc import Orthanc
from tests.support.threshold import ThresholdPredictor

DATES = "20260101-20261231"


class OpenSegmenter:
    """Stands for a model that is served: the watcher's own way to open one is run by `make pacs`."""

    def __init__(self, predictor: ThresholdPredictor) -> None:
        self._segmenter = WindowSegmenter(predictor)
        self.contract = lambda: self._segmenter.contract
        self.segmenter = lambda: self._segmenter
        self.close = lambda: None


class Place:
    """A PACS, an output folder, and the watchers that tests start there."""

    def __init__(self, orthanc: Orthanc, folder: Path) -> None:
        self.orthanc = orthanc
        self.url = orthanc.url
        self.folder = folder
        self.output = folder / "out"
        self.predictor = ThresholdPredictor()
        self.options = BatchOptions(mirroring=False)

    def send(self, *, series: int = 3, **options: object) -> list[Path]:
        options = {"pixel_spacing_mm": (2.0, 1.0), "slice_spacing_mm": 3.0, "StudyDate": "20260105", **options}
        datasets = ct_series(series=series, **options).datasets  # type: ignore[arg-type]
        paths = write_series(self.folder / f"series{series}-{len(datasets)}", datasets)
        self.orthanc.put(*paths)
        return paths

    def watch(self, **watching: object) -> WatchSummary:
        with self.watcher(**watching) as watcher:
            return watcher.run()

    @contextmanager
    def watcher(self, sleep: Callable[[float], object] = time.sleep, **watching: object) -> Iterator[Watcher]:
        self.output.mkdir(exist_ok=True)
        watching = {"study_date": DATES, "stable_s": 0.0, "poll_s": 0.05, "once": True, **watching}
        session = PacsSession(PacsOptions(self.url, patience_s=0.2))
        with Presence(self.output) as presence:
            yield Watcher(
                session, presence, self.output, OpenSegmenter(self.predictor), self.options,  # type: ignore[arg-type]
                WatchOptions(**watching), sleep=sleep,  # type: ignore[arg-type]
            )  # fmt: skip
        session.close()

    def results(self, modality: str = "SEG") -> list[str]:
        return self.orthanc.ids("Instance", Modality=modality)


@pytest.fixture(scope="module")
def running_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    orthanc = Orthanc(required_tool("Orthanc"), tmp_path_factory.mktemp("orthanc"))
    orthanc.start()
    yield orthanc
    orthanc.stop(signal.SIGKILL)


@pytest.fixture
def place(running_orthanc: Orthanc, tmp_path: Path) -> Place:
    running_orthanc.clear()
    return Place(running_orthanc, tmp_path)


def test_a_series_is_segmented_once_and_its_results_are_in_the_pacs_as_in_the_folder(place):
    place.send()
    assert place.watch().counts == {"stored": 1}
    calls = place.predictor.calls
    assert place.watch().counts == {}
    assert place.predictor.calls == calls > 0
    session = PacsSession(PacsOptions(place.orthanc.url))
    (series,) = find_series(session, DATES, modality="SEG")
    fetch_series(session, series, place.folder / "fetched", instances=1)
    (mine,) = place.output.glob("*.seg.dcm")
    (theirs,) = (place.folder / "fetched").iterdir()
    assert is_same_data_set(mine, theirs)
    assert not list(place.output.rglob("fetched"))


def test_what_a_person_deleted_is_made_again_only_where_that_is_asked(place):
    place.send()
    place.watch()
    (result,) = place.results()
    place.orthanc.delete("instances", result)
    assert place.watch().counts == {}
    assert place.results() == []
    calls = place.predictor.calls
    assert place.watch(again=True).counts == {"stored": 1}
    assert place.results() == [result]
    assert place.predictor.calls == calls  # its files were still there
    place.orthanc.delete("instances", result)
    for path in place.output.glob("*.seg.dcm"):
        path.unlink()
    assert place.watch(again=True).counts == {"stored": 1}
    assert place.results() == [result]


def test_other_codes_are_other_results_whoever_says_them(place):
    place.send()
    place.watch()
    spec = place.predictor.spec
    called = {"tumor": LabelPresentation(display_name="Another name")}
    place.predictor.spec = spec.model_copy(update={"presentation": called})
    assert place.predictor.spec.digest == spec.digest
    assert place.watch().counts == {"stored": 1}
    assert len(place.results()) == 2
    place.options = replace(place.options, codes=called)  # what the spec says
    assert place.watch().counts == {}


def test_a_folder_that_was_lost_makes_nothing_twice(place):
    place.send()
    place.watch()
    before, calls = place.results(), place.predictor.calls
    place.output = place.folder / "another"
    assert place.watch().counts == {"stored": 1}
    assert (place.results(), place.predictor.calls) == (before, calls)


def test_a_refused_series_is_named_once_and_stops_no_other(place, caplog):
    place.send(series=4, shear_degrees=14.0)
    place.send()
    assert place.watch().counts == {"refused": 1, "stored": 1}
    assert "series 4" in caplog.text
    assert caplog.text.count("14 degrees") == 1
    assert "Doe" not in caplog.text
    assert caplog.text.count("no codes for") == 1
    caplog.clear()
    summary = place.watch()
    assert (summary.counts, summary.before) == ({}, 2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_of_two_series_with_one_name_of_a_case_the_second_is_refused(place, caplog):
    place.send()
    place.send(series=5)
    place.options = BatchOptions(mirroring=False, case_name_from=("PatientID",))
    assert place.watch().counts == {"stored": 1, "refused": 1}
    assert "another series has the name of its case" in caplog.text


def test_a_series_that_grew_is_a_new_input_and_told(place, caplog):
    place.send(shape=(8, 20, 24))
    place.watch()
    place.send(shape=(10, 20, 24))
    assert place.watch().counts == {"stored": 1}
    assert "had 8 instances when it was done, has 10 now" in caplog.text
    assert len(place.results()) == 2


def test_a_series_that_still_arrives_is_left(place, caplog):
    place.send()
    with place.watcher(stable_s=30.0, sleep=lambda _: place.send(shape=(9, 20, 24))) as watcher:
        assert watcher.run().left == 1
    assert "is still arriving: left" in caplog.text
    assert place.predictor.calls == 0


def test_rules_choose_by_what_the_pacs_says_and_then_by_what_the_files_say(place):
    place.send(SeriesDescription="Thorax 1.0", ConvolutionKernel="B70f")
    place.send(series=5, SeriesDescription="Thorax 5.0")
    place.options = BatchOptions(mirroring=False, series=SeriesRules(("thorax 1.0*",), ("B3*",)))
    assert place.watch().counts == {"left out": 1}
    place.options = BatchOptions(mirroring=False, series=SeriesRules(("thorax 1.0*",)))
    assert place.watch().counts == {"stored": 1}


def test_a_pacs_that_goes_away_after_the_fetch_gets_its_results_later(place):
    """Without a second run of the network."""
    place.send()
    predict, lock = place.predictor.predict, threading.Lock()

    def stops_the_pacs(patches):
        with lock:  # windows run on several threads
            place.orthanc.stop(signal.SIGKILL)
        return predict(patches)

    place.predictor.predict = stops_the_pacs
    try:
        with pytest.raises(PacsAwayError):
            place.watch()
    finally:
        place.orthanc.start()
    place.predictor.predict = predict
    calls = place.predictor.calls
    assert place.watch().counts == {"stored": 1}
    assert place.predictor.calls == calls > 0
    assert len(place.results()) == 1


def test_two_watchers_share_the_work_of_a_folder(place):
    for number in range(3, 7):
        place.send(series=number)
    summaries: list[WatchSummary] = []
    threads = [threading.Thread(target=lambda: summaries.append(place.watch())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(summary.counts["stored"] for summary in summaries) == 4
    assert len(place.results()) == 4


def test_what_cannot_be_stored_is_tried_again_and_then_left(place, caplog):
    """Another object has the UID of the result: it is left as it is."""
    place.send()
    place.watch()
    (path,) = place.output.glob("*.seg.dcm")
    (result,) = place.results()
    place.orthanc.delete("instances", result)
    changed = dcmread(path)
    changed.ContentDescription = "changed"
    changed.save_as(place.folder / "changed.dcm")
    place.orthanc.put(place.folder / "changed.dcm")
    for _ in range(3):
        assert place.watch(again=True).counts == {"failed": 1}
    assert place.watch().counts == {}
    assert "is there with another content" in caplog.text
    assert "has failed 3 times: left" in caplog.text


def test_a_series_that_the_pacs_cannot_list_stops_no_other(place, caplog):
    item = '{"0020000D": {"Value": ["1.2"]}, "0020000E": {"Value": ["%s"]}}'

    def answer(asked):
        if "instances" in asked.path:
            return Said(body=b"nonsense") if "1.3" in asked.path else Said(body=b"[]")
        return Said(body=f"[{item % '1.3'}, {item % '1.4'}]".encode())

    with canned_pacs(answer) as (place.url, asked):
        assert place.watch().counts == {}
    assert any("1.4" in one.path for one in asked)
    assert "passed over" in caplog.text


def test_a_series_at_which_the_pacs_goes_away_hides_no_other(place):
    """The one that comes first takes the PACS down each time."""
    item = '{"0020000D": {"Value": ["1.2"]}, "0020000E": {"Value": ["%s"]}}'

    def answer(asked):
        if "1.3/instances" in asked.path:
            return Said(503)
        return Said(body=b"[]" if "instances" in asked.path else f"[{item % '1.3'}, {item % '1.4'}]".encode())

    looks = iter([None])  # one more look, then the end
    with (
        canned_pacs(answer) as (place.url, asked),
        place.watcher(once=False, sleep=lambda _: next(looks)) as watcher,
        pytest.raises(StopIteration),
    ):
        watcher.run()
    assert any("1.4/instances" in one.path for one in asked)


@pytest.mark.parametrize("text", ["2026", "20261301", "a-b", "-", "20260101-20260102-", "20260101 "])
def test_dates_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="expected a date"):
        WatchOptions(study_date=text)


def test_trouble_is_told_once_and_its_end_too(place, caplog):
    caplog.set_level("INFO")
    answers = iter([Said(body=b"[]"), Said(status=401), Said(status=401), Said(body=b"[]"), Said(body=b"[]")])
    looks = iter([None] * 4)
    with (
        canned_pacs(lambda asked: next(answers)) as (place.url, _),
        place.watcher(once=False, sleep=lambda _: next(looks)) as watcher,
        pytest.raises(StopIteration),
    ):
        watcher.run()
    told = [record.message for record in caplog.records]
    assert [("HTTP 401" in text, "went well" in text) for text in told] == [(True, False), (False, True)], told
