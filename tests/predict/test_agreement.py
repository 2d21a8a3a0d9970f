"""The agreement of folds from windows to the report: of one network, and of those that work together."""

import logging
from pathlib import Path

import numpy as np
import pytest

from ctseg.arrays import Logits, Patches
from ctseg.files.volume import VolumeHeader
from ctseg.model_spec import ModelSpec, Provenance
from ctseg.numerics.votes import logits_and_votes
from ctseg.predict.contract import contract_of, why_no_agreement
from ctseg.predict.estimate import WindowLoad, estimate_memory
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.predictor import Identity, MirroringPredictor
from ctseg.predict.recipe_agreement import agreement_of_union, models_that_vote, why_none
from ctseg.predict.recipe_run import RecipeRun
from ctseg.predict.segment import CaseContext, Scan, Segmentation, WindowOptions, segment
from ctseg.predict.whole_scan import ScanReport
from ctseg.recipe import EnsembleStep, ModelStep, Recipe, UnionStep
from tests.support.toy_models import toy_logits, toy_patches, toy_spec, toy_votes

SPACING = (3.0, 1.0, 1.0)
VOXELS = np.random.default_rng(3).standard_normal((2, 9, 16, 20)).astype(np.float32)


class Voting:
    """The toy network in this process; it is asked for votes where its spec has them, and counts how often."""

    max_batch_size = 2
    max_in_flight = 1

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.identity = Identity(spec.name, 1, spec.digest, (), "in process")
        self.asked: list[bool] = []

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        self.asked.append(votes)
        logits = toy_logits(patches)
        return logits_and_votes(logits, toy_votes(patches), self.spec) if votes else logits


def segmented(spec: ModelSpec, *, agreement: bool | None) -> tuple[Segmentation, Voting]:
    network = Voting(spec)
    queue = InferenceQueue(network, votes=bool(agreement))
    try:
        return segment(Scan(VOXELS, SPACING), queue, WindowOptions(agreement=agreement), CaseContext()), network
    finally:
        queue.close()


def expected() -> dict[str, float]:
    """What the formula gives for the toy network, whose answer does not depend on where a window lies."""
    logits = toy_logits(np.clip(VOXELS, -1, 1)[None])[0].astype(float)
    found = {}
    for head, name in ((1, "liver"), (2, "tumour")):
        votes, mask = logits[head] > 0, logits.argmax(axis=0) == head
        found[name] = round(2 * float(votes[mask].sum()) / float(votes.sum() + mask.sum()), 4)
    return found


def test_a_case_has_the_agreement_that_the_formula_gives() -> None:
    result, network = segmented(toy_spec(votes={"folds": 3}), agreement=True)
    assert all(network.asked)
    assert result.windows > 8
    assert result.agreement == pytest.approx(expected(), abs=1e-4)
    assert all(0 < value < 1 for value in result.agreement.values())


@pytest.mark.parametrize(
    ("votes", "agreement"), [({"folds": 3}, False), ({"folds": 3}, None), (None, True)],
    ids=["not asked for", "by default", "no votes"],
)  # fmt: skip
def test_without_votes_all_is_as_if_there_were_none(votes: object, agreement: bool | None) -> None:
    result, network = segmented(toy_spec(votes=votes), agreement=agreement)
    assert not any(network.asked)
    assert result.agreement == {}
    with_votes, _ = segmented(toy_spec(votes={"folds": 3}), agreement=True)
    np.testing.assert_array_equal(result.labels, with_votes.labels)
    voxels = result.windows * int(np.prod(network.spec.patch_size))
    assert result.bytes_received == 4 * 3 * voxels
    assert with_votes.bytes_received == (4 + 1) * 3 * voxels


def test_mirroring_averages_votes_as_logits() -> None:
    spec = toy_spec(votes={"folds": 3}, mirror_axes=(0, 2), mirroring="client")

    class OfPlace(Voting):
        def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
            answer = super().predict(patches, votes=votes)
            return answer * np.linspace(0, 1, patches.shape[-1], dtype=np.float32)  # depends on x

    patches = toy_patches(1)
    plain, mirrored = OfPlace(spec), MirroringPredictor(OfPlace(spec))
    answers = []
    for axes in ((), (2,), (4,), (2, 4)):
        flipped = np.ascontiguousarray(np.flip(patches, axes))
        answers.append(np.flip(plain.predict(flipped, votes=True), axes))
    np.testing.assert_allclose(mirrored.predict(patches, votes=True), np.mean(answers, axis=0), rtol=1e-5, atol=1e-6)


# --- several models


def recipe_of(step: dict[str, object], *specs: ModelSpec) -> Recipe:
    members = [{"model": spec.name, "digest": spec.digest} for spec in specs]
    return Recipe.model_validate({"name": "all", "members": members, "step": step})


def run(recipe: Recipe, *specs: ModelSpec) -> tuple[Segmentation, dict[str, Voting]]:
    networks = {spec.name: Voting(spec) for spec in specs}
    voting = models_that_vote(recipe.step)
    queues = {name: InferenceQueue(network, votes=name in voting) for name, network in networks.items()}
    try:
        result = RecipeRun(queues, WindowOptions(agreement=True), CaseContext()).segment(recipe, Scan(VOXELS, SPACING))
    finally:
        for queue in queues.values():
            queue.close()
    return result, networks


A, B = (toy_spec(name, votes={"folds": 3}) for name in "ab")
MODEL_A, MODEL_B = ({"kind": "model", "model": name} for name in "ab")


def test_a_union_has_the_agreement_of_the_part_that_a_label_comes_from() -> None:
    labels = [{"name": "liver", "values": (5,)}, {"name": "both", "values": (6, 7)}, {"name": "lesion", "values": (8,)}]
    parts = [{"step": MODEL_A, "values": {1: 5, 2: 6}}, {"step": MODEL_B, "values": {1: 7, 2: 8}}]
    recipe = recipe_of({"kind": "union", "parts": parts, "labels": labels}, A, B)
    result, networks = run(recipe, A, B)
    told = expected()
    assert result.agreement == pytest.approx({"liver": told["liver"], "lesion": told["tumour"]}, abs=1e-4)
    assert all(networks["a"].asked)
    assert all(networks["b"].asked)


def test_an_ensemble_of_configurations_has_none_and_asks_for_no_votes() -> None:
    recipe = recipe_of({"kind": "ensemble", "members": [MODEL_A, MODEL_B]}, A, B)
    result, networks = run(recipe, A, B)
    assert result.agreement == {}
    assert not any(networks["a"].asked)
    assert isinstance(recipe.step, EnsembleStep)
    assert why_none(recipe.step, {"a": A, "b": B}).startswith("the labels are those of an ensemble (a, b)")


def test_a_crop_has_the_agreement_of_what_works_inside() -> None:
    crop = {"finder": MODEL_A, "labels": [1], "margin_mm": 50.0, "inside": MODEL_B, "nothing_found": "empty"}
    result, networks = run(recipe_of({"kind": "crop", **crop}, A, B), A, B)
    assert result.agreement == pytest.approx(expected(), abs=1e-4), "the box is the whole scan"
    assert not any(networks["a"].asked)
    assert all(networks["b"].asked)


def test_a_label_of_a_union_that_is_a_part_of_a_region_has_none() -> None:
    whole = toy_spec(
        "a",
        labels=[{"name": "whole", "values": (1, 2)}, {"name": "core", "values": (2,)}],
        regions_class_order=(1, 2),
        votes={"folds": 3},
    )
    union = {
        "kind": "union",
        "parts": [{"step": MODEL_A, "values": {1: 1, 2: 2}}],
        "labels": [
            {"name": "edge", "values": (1,)}, {"name": "core", "values": (2,)}, {"name": "all", "values": (1, 2)}
        ],
    }  # fmt: skip
    step = recipe_of(union, whole).step
    assert isinstance(step, UnionStep)
    found = agreement_of_union(step, {"a": whole}, [{"whole": 0.9, "core": 0.8}])
    assert found == {"core": 0.8, "all": 0.9}


# --- what people and other programs are told


def test_why_there_is_none_is_told() -> None:
    one, several = Provenance(folds=("all",)), Provenance(folds=("0", "1"))
    assert why_no_agreement(toy_spec(votes={"folds": 2}, provenance=several)) == ""
    assert why_no_agreement(toy_spec(provenance=one)) == "toy has one fold (all), which has no other to agree with"
    assert "exported without the votes of its folds" in why_no_agreement(toy_spec(provenance=several))
    assert contract_of(toy_spec(provenance=one)).no_agreement
    assert why_none(ModelStep.model_validate(MODEL_A), {"a": A}) == ""


def test_a_model_without_votes_that_is_asked_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ctseg.files.scans import find_scans
    from ctseg.predict.options import BatchOptions
    from ctseg.runs.folder import cases_for
    from tests.support.threshold import ThresholdPredictor, write_scan

    write_scan(tmp_path / "scan_0000.nii.gz")
    contract = contract_of(ThresholdPredictor(provenance=Provenance(folds=("0",))).spec)
    for agreement, told in ((True, 1), (False, 0), (None, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            cases = cases_for(find_scans(tmp_path), contract, tmp_path / "out", BatchOptions(agreement=agreement))
        assert [case.name for case in cases] == ["scan"]
        assert sum("will not say how far folds agree" in message for message in caplog.messages) == told


def test_an_older_client_reads_the_report_of_a_scan_that_was_not_asked_for_agreement() -> None:
    said = {"request": "r", "model": "m", "version": 1, "digest": "d", "seconds": {}, "windows": 1, "volumes_ml": {}}
    assert "agreement" not in ScanReport(**said).to_json()
    told = ScanReport(**said, agreement={"liver": 0.5})
    assert ScanReport.model_validate_json(told.to_json()) == told


def test_votes_are_in_the_estimate_where_they_are_asked_for() -> None:
    header = header_of((40, 64, 96))
    spec = toy_spec(votes={"folds": 3})
    without, with_votes = (
        estimate_memory(header, spec, WindowLoad(8, 4, False, 0.5, votes=votes)).peak_bytes for votes in (False, True)
    )
    patch, ring = 6 * 10 * 14, 6 * 64 * 96
    # two further channels of windows and ring, and the answers of four windows before they are put together
    assert with_votes - without == 4 * 2 * (8 * patch + ring) + 4 * 5 * 3 * patch
    assert without == estimate_memory(header, toy_spec(), WindowLoad(8, 4, False, 0.5)).peak_bytes


def header_of(shape: tuple[int, int, int]) -> VolumeHeader:
    from ctseg.files.geometry import Geometry
    from ctseg.files.grid import FileGrid

    geometry = Geometry(shape, np.diag([1.0, 1.0, 3.0, 1.0]))
    return VolumeHeader(2, np.dtype(np.int16), SPACING, geometry, FileGrid(geometry, SPACING), 0)
