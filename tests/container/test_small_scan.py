"""The small scan of the readiness process: what every entry accepts, and what counts as an answer."""

import json
from typing import Any

import numpy as np
import pytest

from ctseg.container import small_scan as small
from ctseg.predict import whole_scan
from ctseg.recipe import Recipe
from tests.support.toy_models import toy_spec

PREVIOUS = {
    "model": "toy",
    "digest": "0" * 64,
    "labels": [1, 2],
    "resampling": {"function": "resample_data_or_seg_to_shape"},
}
CONFIGURATIONS: dict[str, dict[str, str]] = {
    "flat": {"ctseg_spec.1": toy_spec("flat", spacing_mm=(0.5, 2.0), patch_size=(8, 8), mirroring="none").to_json()},
    "turned": {
        "ctseg_spec.9": toy_spec("turned", transpose_forward=(2, 0, 1), spacing_mm=(5.0, 1.0, 2.0)).to_json(),
        "ctseg_spec.10": toy_spec("turned", transpose_forward=(2, 0, 1), spacing_mm=(6.0, 1.0, 2.0)).to_json(),
    },
    "second": {"ctseg_spec.1": toy_spec("second", previous_stage=PREVIOUS).to_json()},
}


def parameters_of(name: str) -> dict[str, str]:
    return CONFIGURATIONS.get(name, {})


def recipe_parameters(**more: str) -> dict[str, Any]:
    members = [{"model": name, "digest": "0" * 64} for name in ("flat", "turned")]
    steps = [{"kind": "model", "model": name} for name in ("flat", "turned")]
    recipe = Recipe.model_validate({"name": "r", "members": members, "step": {"kind": "ensemble", "members": steps}})
    return {"ctseg_recipe.3": recipe.to_json(), **more}


@pytest.mark.parametrize(
    ("name", "version", "spacing_mm"),
    [
        ("flat_scan", "1", (2.0, 0.5, 2.0)),
        ("turned_scan", "9", (1.0, 2.0, 5.0)),
        ("r", "3", (2.0, 2.0, 6.0)),
    ],
)
def test_it_lies_on_the_grid_of_the_network_and_of_the_coarsest_of_several(
    name: str, version: str, spacing_mm: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGURATIONS, "r", recipe_parameters(**{"ctseg_scan.3": "0" * 64}))
    scan = small.small_scan(name, version, parameters_of)
    assert scan is not None
    assert tuple(scan.tensors[small.SPACING]) == spacing_mm
    voxels = scan.tensors[small.VOXELS]
    assert voxels.shape == (2, small.SIDE, small.SIDE, small.SIDE)
    assert 0 <= voxels.min() < voxels.max() <= 255, "RGBTo01 takes no other values"
    assert [tensor["datatype"] for tensor in scan.inputs] == ["INT16", "FP64"]


def test_a_second_stage_is_given_labels_of_the_first() -> None:
    scan = small.small_scan("second_scan", "1", parameters_of)
    assert scan is not None
    assert {"name": small.PREVIOUS_LABELS, "shape": [8, 8, 8], "datatype": "UINT16"} in scan.inputs


def test_a_recipe_of_an_older_ctseg_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGURATIONS, "r", recipe_parameters())
    assert small.small_scan("r", "3", parameters_of) is None


def test_an_entry_without_its_network_is_told() -> None:
    with pytest.raises(ValueError, match="the network beside it carries no spec of version 7"):
        small.small_scan("flat_scan", "7", parameters_of)


def test_an_answer_is_a_label_map_on_its_grid() -> None:
    good = {"name": "labels", "datatype": "UINT16", "shape": [8, 8, 8]}
    assert small.problem_of_labels([good], bytes(1024)) == ""
    assert "in 512 bytes" in small.problem_of_labels([good], bytes(512))
    assert "of shape [8, 8, 7]" in small.problem_of_labels([{**good, "shape": [8, 8, 7]}], bytes(896))
    assert "is missing" in small.problem_of_labels([], b"")


def test_it_speaks_as_the_contract_does() -> None:
    for name in ("SCAN_SUFFIX", "SPACING", "PREVIOUS_LABELS", "LABELS"):
        assert getattr(small, name) == getattr(whole_scan, name)
    assert whole_scan.VOXELS_INT16 == small.VOXELS
    assert {whole_scan.MIRRORING, whole_scan.STEP_SIZE} == set(small.OPTIONS)
    assert json.dumps(small.OPTIONS)
    assert set(small.LABEL_TYPES) == {np.dtype(kind).name.upper() for kind in (np.uint8, np.uint16)}
