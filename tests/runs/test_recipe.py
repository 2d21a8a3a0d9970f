"""Recipes by their names: from a repository or a server's address to finished files, through a real server."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import SetupError, SpecError
from ctseg.files.volume import read_volume
from ctseg.model_spec import ModelSpec
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import Outcome
from ctseg.predict.parts import Part
from ctseg.predict.progress import Progress
from ctseg.recipe import Recipe
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel
from ctseg.serving.entries import read_entry
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.recipe_entry import publish_recipe
from ctseg.serving.server import embedded_server
from ctseg.triton.predictor import connect
from ctseg.triton.served_version import RecipeServedError
from tests.support.toy_models import toy_spec, write_toy_entry
from tests.support.whole_scans import ScanClient

NAMES = ("organs", "bones")
UNION = {
    "kind": "union",
    "parts": [
        {"step": {"kind": "model", "model": "organs"}, "values": {1: 300, 2: 2}},
        {"step": {"kind": "model", "model": "bones"}, "values": {2: 7}},
    ],
    "labels": [{"name": "liver", "values": [300]}, {"name": "tumour", "values": [2]}, {"name": "bone", "values": [7]}],
}


def recipe_of(specs: Mapping[str, ModelSpec], step: Mapping[str, Any] = UNION) -> Recipe:
    members = [{"model": name, "digest": spec.digest} for name, spec in specs.items()]
    return Recipe.model_validate({"name": "together", "members": members, "step": step})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two toy networks, and a recipe of both."""
    root = tmp_path / "models"
    publish_recipe(root, recipe_of({name: write_toy_entry(root, toy_spec(name)) for name in NAMES}))
    return root


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_scans(tmp_path / "in", 3)
    return tmp_path / "in"


def write_scans(folder: Path, count: int) -> None:
    folder.mkdir()
    for case in range(count):
        for channel in range(2):
            voxels = np.random.default_rng([case, channel]).normal(0, 1, (14, 10, 9)).astype(np.float32)
            image = nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
            nib.save(image, folder / f"case{case}_{channel:04d}.nii.gz")


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def check_run(out: Path, of_members: Mapping[str, Mapping[str, np.ndarray]], count: int = 3) -> None:
    found = labels_in(out)
    assert len(found) == count
    for name, labels in found.items():
        expected = np.zeros(labels.shape, np.uint16)
        for value, new in ((1, 300), (2, 2)):
            expected[of_members["organs"][name] == value] = new
        expected[of_members["bones"][name] == 2] = 7
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, expected)
        assert set(np.unique(labels)) == {0, 7, 300}  # the same network twice: bone is written over all of the tumour


@pytest.mark.live
def test_a_recipe_is_run_by_its_name_on_a_server_of_its_own_and_on_running_ones(
    repository: Path, scans: Path, tmp_path: Path
) -> None:
    of_members = {}
    for name in NAMES:
        segment_folder(scans, tmp_path / name, ServedModel(name, repository=repository), BatchOptions())
        of_members[name] = labels_in(tmp_path / name)

    report = segment_folder(scans, tmp_path / "own", ServedModel("together", repository=repository), BatchOptions())
    assert [case.status for case in report.cases] == ["ok"] * 3
    assert all(set(case.volumes_ml) == {"liver", "tumour", "bone"} for case in report.cases)
    check_run(tmp_path / "own", of_members)

    with embedded_server(repository, options=ServerOptions(is_private=False)) as server:
        model = ServedModel("together", urls=(server.url,))
        segment_folder(scans, tmp_path / "served", model, BatchOptions())
        with pytest.raises(RecipeServedError, match=r"together version 1 at .*: this is a recipe of several models"):
            connect([server.url], "together")
        again = segment_folder(scans, tmp_path / "served", model, BatchOptions(continue_prediction=True))
    check_run(tmp_path / "served", of_members)
    assert [case.status for case in again.cases] == ["skipped"] * 3


ONE = [{"kind": "model", "model": name} for name in NAMES]
KINDS = {
    "union": UNION,
    "ensemble": {"kind": "ensemble", "members": ONE},
    "crop": {
        "kind": "crop",
        "finder": ONE[0],
        "labels": [1],
        "margin_mm": 1.0,
        "inside": ONE[1],
        "nothing_found": "empty",
    },
}


@pytest.mark.live
def test_a_recipes_entry_takes_whole_scans(repository: Path, scans: Path, tmp_path: Path) -> None:
    specs = {name: read_entry(repository / name).newest.spec for name in NAMES}
    for kind, step in KINDS.items():
        recipe = Recipe.model_validate({**recipe_of(specs, step).model_dump(mode="json"), "name": kind})
        publish_recipe(repository, recipe)
    volume = read_volume([scans / f"case0_{channel:04d}.nii.gz" for channel in range(2)], "SimpleITKIO")
    with embedded_server(repository, options=ServerOptions(is_private=False, prove=False)) as server:
        for kind in KINDS:
            model = ServedModel(kind, urls=(server.url,))
            segment_folder(scans, tmp_path / kind, model, BatchOptions(part=Part(0, 3)))
            expected = labels_in(tmp_path / kind)["case0.nii.gz"].transpose()
            found = ScanClient(server, kind).send(np.ascontiguousarray(volume.voxels), volume.spacing_mm).labels
            assert found.any()
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == (np.uint16 if kind == "union" else np.uint8)


@pytest.mark.live
def test_a_recipe_goes_on_with_the_versions_that_it_names_and_is_refused_without(
    repository: Path, scans: Path, tmp_path: Path
) -> None:
    write_toy_entry(repository, toy_spec("bones", max_batch_size=3), version=2)
    own = ServedModel("together", repository=repository)
    with embedded_server(repository, options=ServerOptions(is_private=False, prove=False)) as server:
        served = ServedModel("together", urls=(server.url,))
        for number, model in enumerate((own, served)):
            report = segment_folder(scans, tmp_path / str(number), model, BatchOptions())
            made_by = report.cases[0].made_by
            assert made_by is not None
            assert [(item.model, item.model_version) for item in made_by.members] == [("organs", "1"), ("bones", "1")]

    (repository / "bones" / "1").rename(tmp_path / "bones1")
    with pytest.raises(SpecError, match="together: expected the member bones with the spec"):
        segment_folder(scans, tmp_path / "out", own, BatchOptions())
    with embedded_server(repository, options=ServerOptions(is_private=False, prove=False)) as server:
        told = rf"bones at {server.url}: expected a version with the spec .*, found .* in version 2"
        with pytest.raises(SpecError, match=told):
            segment_folder(scans, tmp_path / "out", ServedModel("together", urls=(server.url,)), BatchOptions())
    assert not (tmp_path / "out").exists()


class KillsAfterTheFirstCase(Progress):
    """Kills a server when the first case is done, while others are on their way."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.was_killed = False

    def case_done(self, outcome: Outcome) -> None:
        if not self.was_killed:
            self.was_killed = True
            os.kill(self._server.pid, signal.SIGKILL)


@pytest.mark.live
def test_members_go_on_by_themselves_when_one_of_their_servers_is_killed(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    write_scans(folder, 12)
    of_members = {}
    open_to_all = ServerOptions(is_private=False, prove=False)
    with (
        embedded_server(repository, options=open_to_all) as whole,
        embedded_server(repository, options=open_to_all) as other,
    ):
        for name in NAMES:
            segment_folder(folder, tmp_path / name, ServedModel(name, urls=(whole.url,)), BatchOptions())
            of_members[name] = labels_in(tmp_path / name)
        progress = KillsAfterTheFirstCase(other)
        model = ServedModel("together", urls=(other.url, whole.url))
        report = segment_folder(folder, tmp_path / "out", model, BatchOptions(), progress_for=lambda _: progress)
    assert progress.was_killed
    assert [case.status for case in report.cases] == ["ok"] * 12
    check_run(tmp_path / "out", of_members, count=12)


@pytest.mark.live
def test_probabilities_are_refused_where_a_recipe_has_none(repository: Path, scans: Path, tmp_path: Path) -> None:
    options = BatchOptions(save_probabilities=True)
    with pytest.raises(SetupError, match="together has no probabilities to write: its labels are those of several"):
        segment_folder(scans, tmp_path / "out", ServedModel("together", repository=repository), options)
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_written_once_and_as_a_new_version_when_it_changes(repository: Path) -> None:
    specs = {name: toy_spec(name) for name in NAMES}
    assert publish_recipe(repository, recipe_of(specs)) == 1
    other = {**UNION, "parts": UNION["parts"][::-1]}
    assert publish_recipe(repository, recipe_of(specs, other)) == 2
    assert not list(repository.parent.glob(".ctseg-staging*"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "organs2", "members": [{"model": "organs", "digest": "0" * 64}]}, "expected the member organs"),
        ({"members": [{"model": "nowhere", "digest": "0" * 64}]}, "its member nowhere is not in"),
        ({"name": "bones"}, "bones: .* is a model: take another name"),
    ],
)
def test_a_recipe_that_cannot_be_run_there_is_refused(changes: Any, told: str, repository: Path) -> None:
    member = {"model": "organs", "digest": toy_spec("organs").digest}
    raw = {"name": "one", "members": [member], **changes}
    raw["step"] = {"kind": "model", "model": raw["members"][0]["model"]}
    with pytest.raises(SpecError, match=told):
        publish_recipe(repository, Recipe.model_validate(raw))


def test_a_member_that_is_missing_is_told_before_a_server_is_started(
    repository: Path, scans: Path, tmp_path: Path
) -> None:
    (repository / "bones").rename(tmp_path / "bones")
    with pytest.raises(SpecError, match="together: its member bones is not in"):
        segment_folder(scans, tmp_path / "out", ServedModel("together", repository=repository), BatchOptions())
