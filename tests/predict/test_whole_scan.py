"""What client and server say of a scan's order in memory: it arrives as it lay, however a reader turned it."""

from itertools import permutations, product

import numpy as np
import pytest

from ctseg.errors import InputError
from ctseg.numerics.prepare import prepare
from ctseg.predict.whole_scan import in_memory_order, memory_order_of, order_from_text, order_to_text
from tests.support.toy_models import toy_spec

ORDERS = [
    tuple(axis * sign for axis, sign in zip(axes, signs, strict=True))
    for axes in permutations((1, 2, 3))
    for signs in product((1, -1), repeat=3)
]


@pytest.mark.parametrize("order", ORDERS, ids=order_to_text)
def test_a_scan_lies_on_the_server_as_it_lay_where_it_was_read(order: tuple[int, int, int]) -> None:
    sent = np.random.default_rng(0).normal(0, 1, (2, 9, 11, 15)).astype(np.float32)
    read = in_memory_order(sent, order)
    assert memory_order_of(read) == order
    np.testing.assert_array_equal(read, sent)

    there = in_memory_order(np.ascontiguousarray(read), order_from_text(order_to_text(memory_order_of(read))))
    assert there.strides[1:] == read.strides[1:]
    channels = [{**each.model_dump(), "normalization": "ZScoreNormalization"} for each in toy_spec().channels]
    spec = toy_spec(channels=channels)
    np.testing.assert_array_equal(
        prepare(there, (3.0, 1.0, 1.0), spec).voxels, prepare(read, (3.0, 1.0, 1.0), spec).voxels
    )


@pytest.mark.parametrize("text", ["", "z y", "z z x", "z y x c", "z y --x", "zyx"])
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="memory_order: expected z, y and x, each once"):
        order_from_text(text)
