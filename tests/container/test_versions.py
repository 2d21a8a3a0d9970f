"""Which versions are served, held and superseded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.container.versions import remove_superseded, served_versions, superseded
from ctseg.recipe import Recipe
from ctseg.serving.entries import read_entry, scan_versions
from ctseg.serving.recipe_entry import publish_recipe
from tests.support.container_entries import L4, OLD, RTX, built
from tests.support.toy_models import toy_spec, write_toy_entry
from tests.support.whole_scans import write_scannable_entry


def test_plans_for_all_gpus_of_the_newest_version_are_asked_of_the_one_before(tmp_path: Path) -> None:
    model = built(tmp_path / "models", L4, L4)
    (model.newest.folder / "build_sm90.json").write_text(json.dumps({"tensorrt": "11.2", "gpu": "H100"}))
    assert [item.version for item in served_versions(model, None)] == [2]


def test_two_versions_for_each_machine_are_kept(tmp_path: Path) -> None:
    def old(*builds: dict[str, str], backend: str = "tensorrt") -> list[int]:
        shutil.rmtree(tmp_path / "models", ignore_errors=True)
        return [item.version for item in superseded(built(tmp_path / "models", *builds, backend=backend))]

    assert old(L4, RTX, L4, RTX) == []
    assert old(L4, RTX, L4, RTX, L4) == [1]
    assert old(OLD, L4, L4) == [1]
    here, there = {"machine": {"cpus": 2}}, {"machine": {"cpus": 8}}
    assert old(here, there, here, here, backend="python") == [1]


def test_an_old_version_that_a_recipe_names_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "models"
    first = write_toy_entry(root, build_info={"machine": "same"})
    member = {"model": "toy", "digest": first.digest}
    step = {"kind": "model", "model": "toy"}
    publish_recipe(root, Recipe.model_validate({"name": "named", "members": [member], "step": step}))
    for number in (2, 3, 4):
        write_toy_entry(
            root, toy_spec(spacing_mm=(3.0, 1.0, 1.0 + number)), version=number, build_info={"machine": "same"}
        )
    remove_superseded(root, [read_entry(root / "toy")])
    assert [item.version for item in read_entry(root / "toy").versions] == [1, 3, 4]
    assert "toy: version 1 is old, but recipe named names it: it stays" in caplog.text


def test_superseded_versions_go_with_those_that_take_whole_scans(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for number in (1, 2, 3, 4):
        write_scannable_entry(root, version=number, build_info={"machine": "same"})
    remove_superseded(root, [read_entry(root / "toy")])
    assert scan_versions(root, "toy") == [item.version for item in read_entry(root / "toy").versions] == [3, 4]


HOLDER = """
import os, sys
from pathlib import Path
from ctseg.container.versions import mark_as_served
from ctseg.serving.entries import read_entry, scan_versions
entry = read_entry(Path(sys.argv[1]))
mark_as_served([entry.versions[int(sys.argv[2])]])
os.execvp("sh", ["sh", "-c", "echo held; exec sleep 600"])
"""


def test_versions_that_a_running_server_may_serve_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for number in (1, 2, 3, 4, 5):
        write_toy_entry(root, version=number, build_info={"machine": "same"})
    (root / f".ctseg-staging-{root.name}-killed").mkdir()

    def versions_left() -> list[int]:
        remove_superseded(root, [read_entry(root / "toy")])
        return [item.version for item in read_entry(root / "toy").versions]

    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(root / "toy"), "1"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert versions_left() == [2, 3, 4, 5]  # 3 too: it may have been loaded since
    holder.kill()
    holder.wait(120)
    holder.stdout.close()
    assert versions_left() == [4, 5]
