"""What the scripts ask the container engine for; a stand-in for the engine writes down its words."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A program that adds its words to ``engine.log``, a line for each call."""
    program = tmp_path / "engine"
    program.write_text('#!/bin/sh\necho "$@" >>"$0.log"\n')
    program.chmod(0o755)
    return program


def calls(engine: Path, script: str, *words: str, **environment: str) -> list[str]:
    """Run a script; return what it asked the engine for."""
    log = engine.with_name("engine.log")
    log.unlink(missing_ok=True)
    variables = {"PATH": os.environ["PATH"], "ENGINE": str(engine), "DATA": str(engine.parent / "data"), **environment}
    (engine.parent / "data").mkdir(exist_ok=True)
    subprocess.run([str(SCRIPTS / script), *words], env=variables, check=True, capture_output=True, timeout=60)
    return log.read_text().splitlines()


def commands(lines: list[str]) -> list[str]:
    return [line.partition("ctseg-train ")[2].split()[0] for line in lines]


def preprocess(data: Path, cases: int, done: int, configuration: str = "3d_fullres") -> None:
    """Write what a plan of ``cases`` leaves, as far as ``done`` of them."""
    folder = data / "nnUNet_preprocessed" / "Dataset101_Pieces"
    for part in ("gt_segmentations", f"nnUNetPlans_{configuration}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "nnUNetPlans.json").write_text("{}")
    for i in range(cases):
        (folder / "gt_segmentations" / f"c{i}.nii.gz").touch()
        if i < done:
            (folder / f"nnUNetPlans_{configuration}" / f"c{i}.pkl").touch()


def test_training_may_run_what_it_compiles(engine: Path) -> None:
    for line in calls(engine, "train.sh", "101", "3d_fullres", "0"):
        assert " --read-only --tmpfs /tmp:exec " in line


@pytest.mark.parametrize(("given", "configuration"), [("101", "3d_fullres"), ("Dataset101_Pieces", "3d_fullres")])
def test_what_is_preprocessed_is_not_touched_again(engine: Path, given: str, configuration: str) -> None:
    words = (given, configuration, "0")
    assert commands(calls(engine, "train.sh", *words)) == ["plan", "train"]
    preprocess(engine.parent / "data", 3, 3)
    assert commands(calls(engine, "train.sh", *words)) == ["train"]
    assert commands(calls(engine, "train.sh", *words, "-p", "nnUNetPlans")) == ["train"]
    assert commands(calls(engine, "train.sh", given, "3d_cascade_fullres", "0")) == ["train"]
    assert commands(calls(engine, "train.sh", *words, REPLAN="1")) == ["plan", "train"]


def test_plans_cases_or_configuration_that_are_missing_are_made(engine: Path) -> None:
    preprocess(engine.parent / "data", 3, 2)
    assert commands(calls(engine, "train.sh", "101", "3d_fullres", "0")) == ["plan", "train"]
    preprocess(engine.parent / "data", 3, 3)
    for words in (("101", "2d", "0"), ("102", "3d_fullres", "0"), ("101", "3d_fullres", "0", "-p", "otherPlans")):
        assert commands(calls(engine, "train.sh", *words)) == ["plan", "train"]
    assert commands(calls(engine, "train.sh", "101", "2d", "0", REPLAN="0")) == ["train"]


def test_an_image_with_bundles_of_its_own_is_served_with_those(engine: Path) -> None:
    engine.write_text(engine.read_text() + '[ "$1" != inspect ] || echo true\n')
    models = {"MODELS": str(engine.parent)}
    for variables, is_mounted in (({"BUNDLES": str(engine.parent)}, True), ({"BUNDLES": ""}, False)):
        (started, *_) = calls(engine, "serve.sh", **models, **variables)
        assert (":/bundles:ro " in started) == is_mounted
        assert f"-v {engine.parent}:/models " in started


NVIDIAS = """#!/bin/bash
echo "== a banner =="
export LD_LIBRARY_PATH=/usr/local/cuda/compat/lib.real
exec "$@"
"""


@pytest.mark.parametrize("has_nvidias", [False, True])
def test_the_entry_point_of_the_base_goes_first_and_its_words_are_not_the_commands(
    tmp_path: Path, has_nvidias: bool
) -> None:
    text = (SCRIPTS.parent / "docker" / "serve" / "entrypoint.sh").read_text()
    python = tmp_path / "ctseg" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH|$*"\nexit 7\n')
    nvidias = tmp_path / "nvidia" / "nvidia_entrypoint.sh"
    nvidias.parent.mkdir()
    nvidias.write_text(NVIDIAS)
    program = tmp_path / "entrypoint.sh"
    program.write_text(text.replace("/opt/", f"{tmp_path}/"))
    for path in (python, program, *([nvidias] if has_nvidias else [])):
        path.chmod(0o755)
    done = subprocess.run(
        [str(program), "two words", "--flag"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    path = "/usr/local/cuda/compat/lib.real" if has_nvidias else ""
    assert done.stdout == f"{path}|-I -m ctseg.container.entrypoint two words --flag\n"
    assert done.stderr == ("== a banner ==\n" if has_nvidias else "")
    assert done.returncode == 7
