"""Recipes from a file to labels, beside nnU-Net's own predictors put together by plain code.

The networks run in torch on both sides. Labels may differ only where two heads tie within float32 rounding; what stands
on a label map that differs, such as a cascade's second stage, may differ more, so stages are also compared by
themselves on nnU-Net's own label map.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import SpecError
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import Volume, read_volume
from ctseg.numerics import prepare as prepare_module
from ctseg.predict.recipe_segmenter import RecipeSegmenter
from ctseg.predict.segment import CaseContext
from ctseg.predict.segmenter import WindowSegmenter
from ctseg.recipe import Recipe
from tests.support.label_reader import LabelReader
from tests.support.nnunet_plans import make_dataset, make_plans
from tests.support.nnunet_reference import (
    make_trained_folder,
    reference_predictor,
    reference_probabilities,
    reference_segmentation,
)
from tests.support.torch_predictor import TorchPredictor

FEW = 1e-5
"""Largest share of voxels that may differ."""

CASCADE = "3d_cascade_fullres"
LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}


@dataclass(frozen=True)
class Trained:
    """A model on both sides: nnU-Net's predictor, and ours on the same network."""

    reference: Any
    predictor: TorchPredictor


def trained(
    folder: Path,
    configuration: str = "3d_fullres",
    *,
    seed: int,
    dataset: Any = None,
    first: Any = None,
    **changes: Any,
) -> Trained:
    """Make a model of a random network; its plans have every configuration that a cascade needs."""
    plans = make_plans(**{"configuration": "3d_fullres", **changes})
    fullres = plans["configurations"]["3d_fullres"]
    lowres = {**deepcopy(fullres), "spacing": [6.0, 3.0, 3.0], "next_stage": CASCADE}
    plans["configurations"]["3d_lowres"] = lowres
    plans["configurations"][CASCADE] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    flat = make_plans(configuration="2d", patch_size=(48, 64), spacing=(2.0, 1.5))
    plans["configurations"]["2d"] = flat["configurations"]["2d"]
    name = f"{configuration}_{seed}"
    dataset = dataset or make_dataset(LABELS)
    make_trained_folder(folder / name, plans, dataset, mirror_axes=None, seed=seed, configuration=configuration)
    reference = reference_predictor(folder / name)
    first_stage = None if first is None else first.predictor.spec
    return Trained(
        reference, TorchPredictor(reference, name=name, configuration=configuration, first_stage=first_stage)
    )


def recipe_of(step: Mapping[str, Any], *members: Trained) -> RecipeSegmenter:
    predictors = {member.predictor.spec.name: member.predictor for member in members}
    listed = [{"model": name, "digest": predictor.spec.digest} for name, predictor in predictors.items()]
    recipe = Recipe.model_validate({"name": "together", "members": listed, "step": step})
    return RecipeSegmenter(recipe, predictors)


def one(member: Trained) -> dict[str, str]:
    return {"kind": "model", "model": member.predictor.spec.name}


def cascade_of(first: Trained, second: Trained, **changes: Any) -> dict[str, Any]:
    names = {"previous": first.predictor.spec.name, "model": second.predictor.spec.name}
    return {"kind": "cascade", **names, **changes}


def labels_of(segmenter: RecipeSegmenter, volume: Volume, **context: Any) -> np.ndarray:
    try:
        return segmenter.segment(volume, CaseContext(**context)).labels
    finally:
        segmenter.close()


def read(path: Path) -> Volume:
    return read_volume([path], "SimpleITKIO")


@pytest.mark.parametrize("dataset", [make_dataset(LABELS), make_dataset(REGIONS, regions_class_order=[1, 2])])
@pytest.mark.parametrize("changes", [{}, {"transpose_forward": (2, 0, 1), "spacing": (2.0, 3.0, 2.0)}])
def test_a_cascade_equals_nnunets(dataset: Any, changes: Any, ct_piece: Path, tmp_path: Path) -> None:
    first = trained(tmp_path, "3d_lowres", seed=1, dataset=dataset, **changes)
    second = trained(tmp_path, CASCADE, seed=2, dataset=dataset, first=first, **changes)
    previous = reference_segmentation(first.reference, [ct_piece])
    expected = reference_segmentation(second.reference, [ct_piece], previous=previous)
    other = reference_segmentation(second.reference, [ct_piece], previous=np.zeros_like(previous))
    assert (expected != other).mean() > 0.01, "a second stage that does not look at the first proves nothing"

    volume = read(ct_piece)
    by_itself = WindowSegmenter(second.predictor)
    labels = by_itself.segment(volume, CaseContext(previous=previous.astype(np.uint8))).labels
    by_itself.close()
    assert (labels != expected).mean() <= FEW
    found = labels_of(recipe_of(cascade_of(first, second), first, second), volume)
    assert (found != expected).mean() <= 10 * FEW


@pytest.mark.parametrize("dataset", [make_dataset(LABELS), make_dataset(REGIONS, regions_class_order=[1, 2])])
@pytest.mark.parametrize(
    "other", [{"spacing": (4.0, 2.5, 2.5)}, {"transpose_forward": (2, 0, 1)}, {"configuration": "2d"}]
)
def test_an_ensemble_equals_nnunets(dataset: Any, other: Any, ct_piece: Path, tmp_path: Path) -> None:
    members = [trained(tmp_path, seed=1, dataset=dataset), trained(tmp_path, seed=2, dataset=dataset, **other)]
    mean, expected = nnunets_ensemble(members, [ct_piece])
    segmenter = recipe_of({"kind": "ensemble", "members": [one(member) for member in members]}, *members)
    file = ProbabilityFile(tmp_path / "case.npz")
    labels = labels_of(segmenter, read(ct_piece), probabilities=file)
    file.commit()
    file.close()
    with np.load(tmp_path / "case.npz") as saved:
        assert saved.files == ["probabilities"]
        assert saved["probabilities"].dtype == np.float32
        np.testing.assert_allclose(saved["probabilities"], mean, rtol=0, atol=1e-4)
    assert len(np.unique(expected)) > 1
    assert (labels != expected).mean() <= FEW


def nnunets_ensemble(
    members: list[Trained], files: list[Path], previous: Mapping[int, np.ndarray] = {}
) -> tuple[np.ndarray, np.ndarray]:
    total = None
    for index, member in enumerate(members):
        found = reference_probabilities(member.reference, files, previous=previous.get(index)).astype(np.float32)
        total = found if total is None else total + found
    mean = total / len(members)
    return mean, np.asarray(members[0].reference.label_manager.convert_probabilities_to_segmentation(mean))


def test_an_ensemble_with_a_cascade_and_postprocessing_equals_nnunets(ct_piece: Path, tmp_path: Path) -> None:
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    first, fullres = trained(tmp_path, "3d_lowres", seed=1), trained(tmp_path, seed=3)
    second = trained(tmp_path, CASCADE, seed=2, first=first)
    previous = reference_segmentation(first.reference, [ct_piece])
    _, expected = nnunets_ensemble([fullres, second], [ct_piece], {1: previous})
    expected = remove_all_but_largest_component_from_segmentation(expected, 2)
    step = {
        "kind": "ensemble",
        "members": [one(fullres), cascade_of(first, second)],
        "postprocessing": [{"kind": "keep_largest", "labels": [2]}],
    }
    labels = labels_of(recipe_of(step, first, second, fullres), read(ct_piece))
    assert (labels != expected).mean() <= 1e-3  # one voxel on a tie can join two components


def box_by_hand(labels: np.ndarray, value: int, margin_mm: float, spacing: tuple[float, ...]) -> tuple[slice, ...]:
    where = np.argwhere(labels == value)
    margins = np.ceil(margin_mm / np.array(spacing)).astype(int)
    low, high = where.min(axis=0) - margins, where.max(axis=0) + 1 + margins
    return tuple(slice(max(0, a), min(n, b)) for a, b, n in zip(low, high, labels.shape, strict=True))


@pytest.mark.parametrize("margin_mm", [0.0, 7.0, 1000.0])
def test_a_crop_equals_nnunets_on_the_file_cut_by_slicing(margin_mm: float, ct_piece: Path, tmp_path: Path) -> None:
    finder = trained(tmp_path, seed=1)
    inside = trained(tmp_path, seed=2, spacing=(4.0, 1.5, 1.5), normalization=("ZScoreNormalization",))
    found = reference_segmentation(finder.reference, [ct_piece])
    value = int(np.argmin([(found == label).sum() or found.size for label in range(1, 4)])) + 1
    image = nib.load(ct_piece)
    box = box_by_hand(found, value, margin_mm, image.header.get_zooms()[::-1])
    cut = tmp_path / "cut_0000.nii.gz"
    z, y, x = box
    nib.save(image.slicer[x, y, z], cut)
    expected = np.zeros_like(found)
    expected[box] = reference_segmentation(inside.reference, [cut])

    step = {
        "kind": "crop", "finder": one(finder), "labels": [value], "margin_mm": margin_mm, "inside": one(inside),
        "nothing_found": "empty",
    }  # fmt: skip
    labels = labels_of(recipe_of(step, finder, inside), read(ct_piece))
    assert expected.any()
    assert (labels != expected).mean() <= FEW


BOXES = {
    "narrower than the patch": ((np.s_[12:14, 40:49, 30:36],), {}),
    "on the border, axes transposed": (
        (np.s_[:9, 60:, :30],),
        {"transpose_forward": (2, 0, 1), "spacing": (2.0, 3.0, 2.0)},
    ),
    "in two components": ((np.s_[3:5, 10:14, 20:30], np.s_[22:26, 70:75, 50:60]), {}),
}


@pytest.mark.parametrize("where", BOXES)
def test_a_crop_around_labels_that_are_given_equals_nnunets_on_the_files_cut_by_slicing(
    where: str, ct_piece: Path, tmp_path: Path
) -> None:
    pieces, changes = BOXES[where]
    image = nib.load(ct_piece)
    mask = np.zeros(image.shape[::-1], np.int16)
    for piece in pieces:
        mask[piece] = 2
    given = tmp_path / "case_0001.nii.gz"
    nib.save(nib.Nifti1Image(mask.T, image.affine), given)
    files = [ct_piece, given]
    both = {"normalization": ("ZScoreNormalization", "NoNormalization")}
    inside = trained(tmp_path, seed=2, dataset=make_dataset(LABELS, channels=2), **both, **changes)
    volume = read_volume(files, "SimpleITKIO")
    channels = [channel.name for channel in inside.predictor.spec.channels]
    finder = LabelReader("finder", 1, heads=3, channels=channels, spacing_mm=volume.spacing_mm)
    members = {"finder": finder, inside.predictor.spec.name: inside.predictor}
    listed = [{"model": name, "digest": member.spec.digest} for name, member in members.items()]
    step = {
        "kind": "crop", "finder": {"kind": "model", "model": "finder"}, "labels": [2], "margin_mm": 4.0,
        "inside": one(inside), "nothing_found": "empty",
    }  # fmt: skip
    recipe = Recipe.model_validate({"name": "together", "members": listed, "step": step})

    box = z, y, x = box_by_hand(mask, 2, 4.0, image.header.get_zooms()[::-1])
    cut = [tmp_path / f"cut_{channel:04d}.nii.gz" for channel in range(2)]
    for path, file in zip(cut, files, strict=True):
        nib.save(nib.load(file).slicer[x, y, z], path)
    expected = np.zeros_like(mask)
    expected[box] = reference_segmentation(inside.reference, cut)
    assert expected.any()
    labels = labels_of(RecipeSegmenter(recipe, members), volume)
    assert (labels != expected)[box].mean() <= FEW
    outside = np.ones(mask.shape, bool)
    outside[box] = False
    assert not labels[outside].any()


@pytest.mark.parametrize("nothing_found", ["empty", "whole_scan"])
def test_a_crop_whose_labels_are_nowhere_does_what_the_recipe_says_and_tells(
    nothing_found: str, ct_piece: Path, tmp_path: Path
) -> None:
    many = make_dataset({"background": 0, **{f"part{i}": i for i in range(1, 41)}})
    finder, inside = trained(tmp_path, seed=1, dataset=many), trained(tmp_path, seed=2)
    found = reference_segmentation(finder.reference, [ct_piece])
    absent = next(label for label in range(1, 41) if not (found == label).any())
    step = {
        "kind": "crop", "finder": one(finder), "labels": [absent], "margin_mm": 5, "inside": one(inside),
        "nothing_found": nothing_found,
    }  # fmt: skip
    segmenter = recipe_of(step, finder, inside)
    result = segmenter.segment(read(ct_piece), CaseContext())
    segmenter.close()
    (warning,) = result.warnings
    assert f"found nothing of part{absent}: " in warning
    if nothing_found == "empty":
        assert not result.labels.any()
    else:
        assert (result.labels != reference_segmentation(inside.reference, [ct_piece])).mean() <= FEW


def test_a_union_equals_a_plain_merge_and_prepares_once_what_is_prepared_alike(
    ct_piece: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [trained(tmp_path, seed=seed) for seed in range(3)]
    tables = [{1: 1, 2: 300}, {3: 2}, {1: 4, 2: 1}]
    expected = np.zeros(reference_segmentation(parts[0].reference, [ct_piece]).shape, np.uint16)
    for part, table in zip(parts, tables, strict=True):
        labels = reference_segmentation(part.reference, [ct_piece])
        for value, new in table.items():
            expected[labels == value] = new
    step = {
        "kind": "union",
        "parts": [{"step": one(part), "values": table} for part, table in zip(parts, tables, strict=True)],
        "labels": [{"name": str(value), "values": [value]} for value in (1, 2, 4, 300)],
    }
    calls = []
    monkeypatch.setattr(prepare_module, "find_nonzero_box", counted(prepare_module.find_nonzero_box, calls))
    segmenter = recipe_of(step, *parts)
    assert segmenter.contract.labels == {"1": (1,), "2": (2,), "4": (4,), "300": (300,)}
    labels = labels_of(segmenter, read(ct_piece))
    assert labels.dtype == np.uint16
    assert (labels != expected).mean() <= FEW
    assert len(calls) == 1


def counted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return call


def test_members_that_are_not_those_of_the_recipe_are_refused(tmp_path: Path) -> None:
    member = trained(tmp_path, seed=1)
    recipe = Recipe.model_validate(
        {"name": "r", "members": [{"model": "3d_fullres_1", "digest": "0" * 64}], "step": one(member)}
    )
    with pytest.raises(SpecError, match="r: expected the member 3d_fullres_1 with the spec 000000000000, found"):
        RecipeSegmenter(recipe, {"3d_fullres_1": member.predictor})
