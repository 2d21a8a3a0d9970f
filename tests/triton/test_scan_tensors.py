"""A scan as it travels, and label maps that are none."""

import tracemalloc
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ctseg.predict.contract import contract_of
from ctseg.predict.segment import Scan
from ctseg.predict.whole_scan import LABELS, LABELS_DEFLATED, REPORT
from ctseg.triton.errors import WRONG, CallError
from ctseg.triton.scan_tensors import answer_of, inflated, tensors_of
from tests.support.fake_scans import FakeScanClient, SentScan
from tests.support.toy_models import toy_spec

CONTRACT = contract_of(toy_spec())


def sent(voxels: np.ndarray, outputs: tuple[str, ...] = (LABELS, REPORT)) -> SentScan:
    wanted = [SimpleNamespace(name=lambda name=name: name) for name in outputs]
    return SentScan(tensors_of(Scan(voxels, (3.0, 1.0, 0.5)), None), wanted, "mine", {})


WHOLE = np.arange(-60, 60).reshape(1, 4, 5, 6)
ODD = WHOLE.astype(np.float32)
ODD[0, 3, 4, 5] = 0.5
ZERO = np.where(WHOLE == 0, np.float32(-0.0), WHOLE.astype(np.float32))


@pytest.mark.parametrize(
    ("voxels", "dtype"),
    [
        (WHOLE.astype(np.int16), np.int16),
        (WHOLE.astype(np.int8), np.int16),
        (WHOLE.astype(np.int32), np.int16),
        ((WHOLE + 60).astype(np.uint16), np.int16),
        (WHOLE.astype(np.float32), np.int16),
        (WHOLE.astype(np.int16)[:, ::-1, :, ::-1].transpose(0, 3, 1, 2), np.int16),
        (np.repeat(WHOLE, 3, axis=0).astype(np.float32)[:, ::-1], np.int16),
        ((WHOLE * 1000).astype(np.int32), np.float32),
        ((WHOLE + 40_000).astype(np.uint16), np.float32),
        (ODD, np.float32),
        (ZERO, np.float32),
        ((WHOLE * 1e9).astype(np.float32), np.float32),
        ((WHOLE * 1e30).astype(np.float32), np.float32),
    ],
)
def test_voxels_travel_as_int16_where_that_changes_no_bit_of_them(voxels: np.ndarray, dtype: type) -> None:
    scan = sent(voxels)
    assert scan.voxels.dtype == dtype
    np.testing.assert_array_equal(
        scan.voxels.astype(np.float32).view(np.uint32), np.ascontiguousarray(voxels, np.float32).view(np.uint32)
    )
    assert scan.tensors["spacing_mm"].tolist() == [3.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "expected 1000 bytes, found 0"),
        (b"no such thing", "no zlib stream"),
        (zlib.compress(bytes(999)), "found 999"),
        (zlib.compress(bytes(1001)), "found 1000, and more"),
        (zlib.compress(bytes(1000))[:-3], "found 1000"),
        (zlib.compress(bytes(1000)) + b"x", "found 1000, and more"),
    ],
)
def test_a_stream_that_is_not_as_long_as_the_scan_is_no_answer(content: bytes, told: str) -> None:
    with pytest.raises(CallError, match=told) as caught:
        inflated(content, 1000)
    assert caught.value.status == WRONG
    assert inflated(zlib.compress(bytes(1000)), 1000) == bytes(1000)


def test_a_stream_that_would_fill_the_memory_fills_none_of_it() -> None:
    bomb = zlib.compress(bytes(300 << 20), 9)
    tracemalloc.start()
    with pytest.raises(CallError, match="found 1000, and more"):
        inflated(bomb, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("outputs", [(LABELS, REPORT), (LABELS_DEFLATED, REPORT)])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"request": "another"}, "the answer to another request"),
        ({"labels": np.full((4, 5, 6), 3, np.uint8)}, "expected labels up to 2, found 3"),
        ({"labels": np.zeros((4, 5, 7), np.uint8)}, "labels"),
        ({"labels": np.zeros((4, 5, 6), np.uint16)}, "labels"),
    ],
)
def test_an_answer_that_is_not_the_scans_own_is_refused(outputs: tuple[str, ...], changes: Any, told: str) -> None:
    scan = sent(WHOLE, outputs)
    with pytest.raises(CallError, match=told) as caught:
        read(scan, scan.answer(**changes))
    assert caught.value.status == WRONG
    np.testing.assert_array_equal(read(scan, scan.answer()).labels, WHOLE[0] > 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors[:1],
        lambda tensors: tensors[1:],
        lambda tensors: [*tensors, ("more", "UINT8", [1], b"x")],
        lambda tensors: [tensors[0], ("report", "UINT8", [2], b"{}")],
        lambda tensors: [("labels", "UINT8", [4, 5, 6], bytes(119)), tensors[1]],
        lambda tensors: [("labels", "INT64", [4, 5, 6], bytes(120)), tensors[1]],
    ],
)
def test_an_answer_of_other_tensors_is_refused(change: Any) -> None:
    scan = sent(WHOLE)
    with pytest.raises(CallError) as caught:
        read(scan, change(scan.answer()))
    assert caught.value.status == WRONG


def read(scan: SentScan, tensors: Any) -> Any:
    response = FakeScanClient.result(tensors).get_response()
    return answer_of(response, "mine", Scan(scan.voxels, (3.0, 1.0, 0.5)), CONTRACT)
