"""What a recipe makes of label maps that are given, beside plain code: equal in every voxel."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ctseg.files.volume import volume_from_array
from ctseg.predict.recipe_segmenter import RecipeSegmenter
from ctseg.predict.segment import CaseContext, Segmentation
from ctseg.recipe import Recipe
from tests.support.label_reader import LabelReader

SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.75, 0.75), (0.7, 3.0, 1.1)]
TRANSPOSES = [(0, 1, 2), (2, 0, 1), (1, 0, 2)]
HEADS = 5
CHANNELS = ("c0", "c1", "c2")


def blobs(rng: np.random.Generator, shape: tuple[int, ...], heads: int = HEADS) -> np.ndarray:
    """Label maps, (3, z, y, x), in smooth pieces, most of it background."""
    noise = ndimage.gaussian_filter(rng.normal(size=(heads, 3, *shape)), (0, 0, 1.5, 1.5, 1.5))
    labels = noise.argmax(axis=0)
    return np.where(noise.max(axis=0) > np.quantile(noise.max(axis=0), 0.6), labels, 0)


@st.composite
def readers(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, LabelReader], tuple[float, float, float]]:
    """Three label maps as the channels of a scan, and a model that gives each: ``m0``, ``m1``, ``m2``."""
    shape = tuple(draw(st.integers(1, 22)) for _ in range(3))
    spacing = draw(st.sampled_from(SPACINGS))
    maps = blobs(np.random.default_rng(draw(st.integers(0, 2**32))), shape)
    members = {
        f"m{i}": LabelReader(
            f"m{i}", i, heads=HEADS, channels=CHANNELS, spacing_mm=spacing,
            transpose_forward=draw(st.sampled_from(TRANSPOSES)),
        )
        for i in range(3)
    }  # fmt: skip
    return maps, members, spacing


def model(name: str) -> dict[str, str]:
    return {"kind": "model", "model": name}


def segmented(
    step: Mapping[str, Any], maps: np.ndarray, members: Mapping[str, LabelReader], spacing: tuple[float, float, float]
) -> Segmentation:
    named = {name: member for name, member in members.items() if f"'{name}'" in repr(step)}
    listed = [{"model": name, "digest": member.spec.digest} for name, member in named.items()]
    recipe = Recipe.model_validate({"name": "together", "members": listed, "step": step})
    segmenter = RecipeSegmenter(recipe, named)
    try:
        return segmenter.segment(
            volume_from_array(maps.astype(np.int32), np.diag([*spacing[::-1], 1.0])), CaseContext()
        )
    finally:
        segmenter.close()


def box_by_hand(
    labels: np.ndarray, values: list[int], margin_mm: float, spacing: tuple[float, float, float]
) -> tuple[slice, ...] | None:
    where = np.argwhere(np.isin(labels, values))
    if not len(where):
        return None
    margins = np.ceil(margin_mm / np.array(spacing)).astype(int)
    low, high = where.min(axis=0) - margins, where.max(axis=0) + 1 + margins
    return tuple(slice(max(0, a), min(n, b)) for a, b, n in zip(low, high, labels.shape, strict=True))


@settings(max_examples=60, deadline=None)
@given(readers(), st.data())
def test_a_union_is_a_plain_merge(made: Any, data: st.DataObject) -> None:
    maps, members, spacing = made
    to = st.sampled_from([1, 2, 7, 255, 256, 300, 65_535])
    tables = [
        data.draw(st.dictionaries(st.integers(1, HEADS - 1), to, min_size=1))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    order = data.draw(st.permutations(range(3)))[: len(tables)]
    expected = np.zeros(maps.shape[1:], np.int64)
    for index, table in zip(order, tables, strict=True):
        for value, new in table.items():
            expected[maps[index] == value] = new
    written = sorted({new for table in tables for new in table.values()})
    step = {
        "kind": "union",
        "parts": [
            {"step": model(f"m{index}"), "values": table} for index, table in zip(order, tables, strict=True)
        ],
        "labels": [{"name": f"u{value}", "values": [value]} for value in written],
    }  # fmt: skip
    labels = segmented(step, maps, members, spacing).labels
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == (np.uint8 if written[-1] < 256 else np.uint16)


def crop_step(values: list[int], margin_mm: float, nothing_found: str) -> dict[str, Any]:
    return {
        "kind": "crop", "finder": model("m0"), "labels": values, "margin_mm": margin_mm, "inside": model("m1"),
        "nothing_found": nothing_found,
    }  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    readers(),
    st.lists(st.integers(1, HEADS - 1), min_size=1, max_size=2, unique=True),
    st.sampled_from([0.0, 0.1, 0.75, 1.0, 2.2, 5.0, 1000.0]),
    st.sampled_from(["empty", "whole_scan"]),
)
def test_a_crop_is_cut_and_pasted_back_by_slices(
    made: Any, values: list[int], margin_mm: float, nothing_found: str
) -> None:
    maps, members, spacing = made
    box = box_by_hand(maps[0], values, margin_mm, spacing)
    expected = np.zeros(maps.shape[1:], np.int64)
    if box is not None:
        expected[box] = maps[1][box]
    elif nothing_found == "whole_scan":
        expected = maps[1]
    result = segmented(crop_step(values, margin_mm, nothing_found), maps, members, spacing)
    np.testing.assert_array_equal(result.labels, expected)
    assert bool(result.warnings) == (box is None)


SHAPE = (9, 20, 24)
WHERE = {
    "narrower than the patch": (np.s_[4:5, 8:10, 11:14],),
    "on the border": (np.s_[:2, :3, 20:],),
    "in two components": (np.s_[1:2, 2:4, 3:5], np.s_[7:8, 15:18, 20:22]),
    "one voxel in a corner": (np.s_[8:, 19:, 23:],),
    "all of it": (np.s_[:],),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("margin_mm", [0.0, 1.6])
def test_boxes_of_every_kind_are_cut_and_pasted_back(where: str, margin_mm: float) -> None:
    spacing = (5.0, 0.75, 0.8)
    maps = np.random.default_rng(0).integers(1, HEADS, (3, *SHAPE))
    maps[0] = 0
    for piece in WHERE[where]:
        maps[0][piece] = 3
    members = {f"m{i}": LabelReader(f"m{i}", i, heads=HEADS, channels=CHANNELS, spacing_mm=spacing) for i in range(2)}
    margins = (0, 0, 0) if margin_mm == 0 else (1, 3, 2)  # the ceilings of 1.6 / 5, 1.6 / 0.75 and 1.6 / 0.8
    ends = [np.flatnonzero(maps[0].any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    box = tuple(slice(max(0, low - by), high + 1 + by) for (low, high), by in zip(ends, margins, strict=True))
    expected = np.zeros(SHAPE, np.int64)
    expected[box] = maps[1][box]
    np.testing.assert_array_equal(
        segmented(crop_step([3], margin_mm, "empty"), maps, members, spacing).labels, expected
    )


@settings(max_examples=30, deadline=None)
@given(readers())
def test_a_second_stage_gets_the_labels_of_the_first_in_every_voxel(made: Any) -> None:
    maps, members, spacing = made
    first = members["m0"]
    forward = first.spec.transpose_forward
    second = LabelReader(
        "second", None, heads=HEADS, channels=CHANNELS, spacing_mm=spacing, transpose_forward=forward, previous=first,
    )  # fmt: skip
    step = {"kind": "cascade", "previous": "m0", "model": "second"}
    labels = segmented(step, maps, {"m0": first, "second": second}, spacing).labels
    np.testing.assert_array_equal(labels, maps[0])

    crop = {**crop_step([2], 2.2, "whole_scan"), "finder": model("m1"), "inside": step}
    box = box_by_hand(maps[1], [2], 2.2, spacing) or np.s_[:, :, :]
    expected = np.zeros_like(maps[0])
    expected[box] = maps[0][box]
    labels = segmented(crop, maps, {**members, "second": second}, spacing).labels
    np.testing.assert_array_equal(labels, expected)


@settings(max_examples=30, deadline=None)
@given(readers(), st.sampled_from([0.0, 2.2]), st.sampled_from(["empty", "whole_scan"]))
def test_steps_within_steps_are_plain_code_within_plain_code(made: Any, margin_mm: float, nothing_found: str) -> None:
    maps, members, spacing = made
    inner = {"kind": "crop", "finder": model("m1"), "labels": [2, 3], "margin_mm": margin_mm, "inside": model("m2"),
             "nothing_found": "empty"}  # fmt: skip
    union = {
        "kind": "union",
        "parts": [{"step": model("m1"), "values": {1: 400}}, {"step": inner, "values": {1: 5, 4: 400}}],
        "labels": [{"name": "a", "values": [5]}, {"name": "b", "values": [400]}],
    }
    step = {"kind": "crop", "finder": model("m0"), "labels": [1], "margin_mm": margin_mm, "inside": union,
            "nothing_found": nothing_found}  # fmt: skip

    outer = box_by_hand(maps[0], [1], margin_mm, spacing)
    if outer is None:
        outer = np.s_[:0, :, :] if nothing_found == "empty" else np.s_[:, :, :]
    one, two = maps[1][outer], maps[2][outer]
    cropped = np.zeros_like(two)
    if (box := box_by_hand(one, [2, 3], margin_mm, spacing)) is not None:
        cropped[box] = two[box]
    merged = np.where(one == 1, 400, 0)
    merged[cropped == 1] = 5
    merged[cropped == 4] = 400
    expected = np.zeros(maps.shape[1:], np.int64)
    expected[outer] = merged
    labels = segmented(step, maps, members, spacing).labels
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint16


def test_a_step_that_stands_there_several_times_is_run_once() -> None:
    maps = np.random.default_rng(0).integers(0, HEADS, (3, *SHAPE))
    members = {f"m{i}": LabelReader(f"m{i}", i, heads=HEADS, channels=CHANNELS, spacing_mm=(1, 1, 1)) for i in range(2)}
    crop = crop_step([1], 0.0, "empty")
    step = {
        "kind": "union",
        "parts": [
            {"step": model("m0"), "values": {1: 1}},
            {"step": crop, "values": {2: 2}},
            {"step": {**crop, "labels": [2]}, "values": {3: 3}},
        ],
        "labels": [{"name": f"u{value}", "values": [value]} for value in (1, 2, 3)],
    }
    alone = segmented(model("m0"), maps, members, (1, 1, 1)).windows
    assert segmented(step, maps, members, (1, 1, 1)).windows == 3 * alone  # the finder, and one in each box
