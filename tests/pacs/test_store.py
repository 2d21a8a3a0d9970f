import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread

from ctseg.errors import PacsError
from ctseg.files.dicom.objects import uids_of
from ctseg.pacs.options import PacsOptions
from ctseg.pacs.session import PacsRefusedError, PacsSession
from ctseg.pacs.store import store_object
from tests.support.canned_pacs import Said, canned_pacs

FAILED = b'{"00081198": {"vr": "SQ", "Value": [{"00081155": {"Value": ["%s"]}, "00081197": {"Value": [%d]}}]}}'


def test_an_object_is_stored_once_and_another_client_reads_the_same(orthanc, session, slices, tmp_path):
    assert store_object(session, slices[0], tmp_path / "scratch")
    assert not store_object(session, slices[0], tmp_path / "scratch")
    uids = uids_of(slices[0])
    other = DICOMwebClient(orthanc.url).retrieve_instance(uids.study, uids.series, uids.instance)
    assert other == dcmread(slices[0])
    assert list(tmp_path.iterdir()) == []


def test_another_object_of_the_same_uid_is_never_taken_for_ours(session, slices, tmp_path):
    """Orthanc answers 200 to such a store, and keeps what it has."""
    store_object(session, slices[0], tmp_path / "scratch")
    changed = dcmread(slices[0])
    changed.PatientComments = "changed"
    changed.save_as(tmp_path / "changed.dcm")
    with pytest.raises(PacsError, match="is there with another content"):
        store_object(session, tmp_path / "changed.dcm", tmp_path / "scratch")


@pytest.mark.parametrize("status", [200, 202, 409])
def test_an_object_that_is_listed_as_failed_is_named_whatever_the_status(slices, tmp_path, status):
    body = FAILED % (uids_of(slices[0]).instance.encode(), 0xA701)

    def answer(asked):
        if asked.method == "GET":
            return Said(404)
        return Said(status, body, {"Content-Type": "application/dicom+json; charset=utf-8"})

    with (
        canned_pacs(answer) as (url, asked),
        pytest.raises(PacsError, match="no place for it") as told,
    ):
        store_object(PacsSession(PacsOptions(url)), slices[0], tmp_path / "scratch")
    assert uids_of(slices[0]).instance not in str(told.value)
    assert (
        next(one for one in asked if one.method == "POST")
        .body.split(b"\r\n\r\n", 1)[1]
        .startswith(slices[0].read_bytes())
    )


def test_a_store_that_is_refused_is_named(slices, tmp_path):
    with (
        canned_pacs(lambda asked: Said(404 if asked.method == "GET" else 415)) as (url, _),
        pytest.raises(PacsRefusedError, match="HTTP 415"),
    ):
        store_object(PacsSession(PacsOptions(url)), slices[0], tmp_path / "scratch")


def test_a_duplicate_counts_where_the_same_is_there_in_the_end(slices, tmp_path):
    """Somebody stores the same between the look and the store."""
    part = b"--x\r\n\r\n" + slices[0].read_bytes() + b"\r\n--x--"
    there = Said(body=part, headers={"Content-Type": "multipart/related; boundary=x"})
    gets = iter([Said(body=b"[]"), there])
    failed = FAILED % (uids_of(slices[0]).instance.encode(), 0x0111)
    with canned_pacs(lambda asked: next(gets) if asked.method == "GET" else Said(409, failed)) as (url, _):
        assert store_object(PacsSession(PacsOptions(url)), slices[0], tmp_path / "scratch")
