import pytest

from ctseg.errors import PacsAwayError, PacsError
from ctseg.files.dicom.objects import is_same_data_set, uids_of
from ctseg.pacs.fetch import fetch_instance, fetch_series
from ctseg.pacs.find import PacsSeries, find_series
from ctseg.pacs.options import PacsOptions
from ctseg.pacs.session import PacsRefusedError, PacsSession
from tests.support.canned_pacs import Said, canned_pacs

PARTS = {"Content-Type": 'multipart/related; type="application/dicom"; boundary="x"'}
SERIES = PacsSeries("1.2", "1.3")


def test_what_was_sent_by_c_store_comes_back_byte_for_byte(orthanc, session, slices, tmp_path):
    orthanc.send(slices[0].parent)
    (series,) = find_series(session, "20260105")
    fetch_series(session, series, tmp_path / "here", instances=5)
    fetched = {uids_of(path).instance: path for path in (tmp_path / "here").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert all(is_same_data_set(path, fetched.pop(uids_of(path).instance)) for path in slices)
    assert fetched == {}


def test_a_series_that_is_not_there_leaves_nothing_and_its_uid_is_not_told(session, tmp_path):
    with pytest.raises(PacsRefusedError, match="HTTP 404: it is not there") as told:
        fetch_series(session, SERIES, tmp_path / "here", instances=5)
    assert list(tmp_path.iterdir()) == []
    assert SERIES.series_uid not in str(told.value)
    assert fetch_instance(session, SERIES, "1.4", tmp_path / "there") is None


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        (
            Said(body=b"--x\r\n\r\n1\r\n--x\r\n\r\n2\r\n--x--", headers=PARTS),
            PacsAwayError,
            "2 of 3 instances came",
        ),
        (Said(body=b"--x\r\n\r\n1\r\n" * 4 + b"--x--", headers=PARTS), PacsError, "more instances than the 3"),
        (Said(body=b"--x\r\n\r\none\r\n--x\r\n\r\ntw", headers=PARTS), PacsAwayError, "was cut off"),
        (Said(body=b"--x\r\n\r\none", length=500, headers=PARTS), PacsAwayError, "the connection failed"),
        (Said(body=b"--x\r\n" + b"a" * 70_000, headers=PARTS), PacsError, "no end"),
        (Said(body=b"--x\r\n\r\n" + b"a" * 2_000_000, headers=PARTS), PacsError, "more than 1000000 bytes"),
        (Said(body=b"hello", headers={"Content-Type": "text/html"}), PacsError, "no multipart"),
    ],
)
def test_an_answer_that_is_not_the_whole_series_leaves_nothing(tmp_path, said, kind, why):
    with canned_pacs(lambda asked: said) as (url, _):
        session = PacsSession(PacsOptions(url, patience_s=0.01, most_series_bytes=1_000_000))
        with pytest.raises(kind, match=why):
            fetch_series(session, SERIES, tmp_path / "here", instances=3)
    assert list(tmp_path.iterdir()) == []


def test_a_pacs_that_does_not_know_every_transfer_syntax_is_asked_more_simply(tmp_path):
    def answer(asked):
        if "transfer-syntax" in asked.headers["Accept"]:
            return Said(406)
        return Said(body=b"preamble\r\n--x\r\nContent-Type: application/dicom\r\n\r\none\r\n--x--\r\n", headers=PARTS)

    with canned_pacs(answer) as (url, asked):
        fetch_series(PacsSession(PacsOptions(url)), SERIES, tmp_path / "here", instances=1)
    assert len(asked) == 2
    assert [path.read_bytes() for path in (tmp_path / "here").iterdir()] == [b"one"]
