import json

import pytest

from ctseg.errors import PacsError
from ctseg.files.dicom.objects import uids_of
from ctseg.pacs.find import find_series, instances_of
from ctseg.pacs.options import PacsOptions
from ctseg.pacs.session import PacsSession
from tests.support.canned_pacs import Said, canned_pacs
from tests.support.dicom_series import ct_series, other_object, write_series

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


def test_ct_series_of_the_dates_are_found_and_nothing_else(orthanc, session, slices, tmp_path):
    old = ct_series((2, 6, 7), study=2, series=8, StudyDate="20251231").datasets
    report = other_object(old[0], SEGMENTATION, "SEG", StudyDate="20260105")
    orthanc.put(*slices, *write_series(tmp_path, [*old, report]))
    (found,) = find_series(session, "20260105-20260106")
    assert (found.number, found.instances) == (3, 5)
    assert {one.number for one in find_series(session, "20251201-")} == {3, 8}
    assert find_series(session, "20270101-") == []


def test_pages_are_put_together(orthanc, session, slices):
    orthanc.put(*slices)
    (series,) = find_series(session, "20260105", page=1)
    assert instances_of(session, series, page=2) == {uids_of(path).instance for path in slices}


def test_a_pacs_that_knows_no_pages_is_asked_once_more_and_no_longer():
    item = b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}, "0020000E": {"vr": "UI", "Value": ["1.3"]}}]'
    with canned_pacs(lambda asked: Said(body=item)) as (url, asked):
        found = find_series(PacsSession(PacsOptions(url)), "20260105")
    assert [series.series_uid for series in found] == ["1.3"]
    assert len(asked) == 2


@pytest.mark.parametrize(
    "uid",
    ["../../secret", "1.2/instances", "1." + "2" * 64, "1.2\\n", "", 12, None, ["1.2"]],
)
def test_what_is_no_uid_never_becomes_part_of_an_address(uid):
    item = {"0020000D": {"Value": [uid]}, "0020000E": {"Value": ["1.3"]}}
    with canned_pacs(lambda asked: Said(body=json.dumps([item, 3, [], {"0020000E": 7}]).encode())) as (url, _):
        assert find_series(PacsSession(PacsOptions(url)), "20260105") == []


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b'{"a": 1}', b"\xff\xfe"])
def test_an_answer_that_is_no_list_in_json_is_named(body):
    with (
        canned_pacs(lambda asked: Said(body=body)) as (url, _),
        pytest.raises(PacsError, match="the answer is no"),
    ):
        find_series(PacsSession(PacsOptions(url)), "20260105")
