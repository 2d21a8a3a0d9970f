"""What is said of a recipe as a whole, where a network of it gives other labels than the reference."""

import numpy as np
import pytest

from ctseg.deploy.whole import check_whole
from ctseg.files.volume import volume_from_array
from ctseg.predict.predictor import PatchPredictor
from ctseg.recipe import Recipe
from tests.support.label_reader import LabelReader

SPACING = (3.0, 1.0, 1.0)
CHANNELS = ("one", "other")


def cascade_reading(channel: int) -> dict[str, PatchPredictor]:
    """A first stage that finds what stands in a channel, and a second one that says the same."""
    first = LabelReader("first", channel, heads=3, channels=CHANNELS, spacing_mm=SPACING)
    second = LabelReader("second", None, heads=3, channels=CHANNELS, spacing_mm=SPACING, previous=first)
    return {"first": first, "second": second}


@pytest.mark.parametrize("differing", [0, 5])
def test_where_the_first_stage_differs_is_said(differing: int) -> None:
    maps = np.zeros((2, 20, 30, 40), np.int32)
    maps[:, 4:16, 5:25, 5:35] = 1
    maps[1, 10, 10, 10 : 10 + differing] = 2
    reference, found = cascade_reading(0), cascade_reading(1)
    members = [{"model": name, "digest": each.spec.digest} for name, each in reference.items()]
    step = {"kind": "cascade", "previous": "first", "model": "second"}
    recipe = Recipe.model_validate({"name": "both", "members": members, "step": step})
    volume = volume_from_array(maps, np.diag([1.0, 1.0, 3.0, 1.0]))
    check = check_whole(recipe, found, reference, volume, what="a test", source="made")
    assert check.first_stages == {"first": differing}
    assert check.differing == differing
    assert str(check).endswith(f"; of its first stage first {differing} of 24000 voxels")
    assert [problem.partition(":")[2] for problem in check.problems] == (
        [] if differing == 0 else [" 5 of 24000 voxels have another label", " l2: 5 of 0 voxels differ, at most 2 may"]
    )


def test_a_case_without_a_label_proves_nothing() -> None:
    reader = {"m": LabelReader("m", 0, heads=3, channels=CHANNELS, spacing_mm=SPACING)}
    members = [{"model": "m", "digest": reader["m"].spec.digest}]
    recipe = Recipe.model_validate({"name": "r", "members": members, "step": {"kind": "model", "model": "m"}})
    volume = volume_from_array(np.zeros((2, 8, 9, 10), np.int32), np.diag([1.0, 1.0, 3.0, 1.0]))
    check = check_whole(recipe, reader, reader, volume, what="a test", source="made")
    assert check.problems == ("made: PyTorch finds nothing on it, which proves nothing: give another scan",)
    assert check.first_stages == {}
    assert not check_whole(recipe, reader, reader, volume, what="", source="", may_be_empty=True).problems
