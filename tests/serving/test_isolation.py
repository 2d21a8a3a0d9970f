"""What is started looks for nothing in the current folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctseg.errors import SetupError
from ctseg.serving.isolation import (
    absolute_entries,
    empty_folder,
    isolated_environment,
    python_command,
    temporary_parent,
)
from tests.support.planted import plant_modules, what_ran

ROOT = Path(__file__).parents[2]
OLDER = sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10")) + [
    Path(found) for found in [shutil.which("python3.10")] if found
]


def test_search_paths_keep_their_absolute_entries_only() -> None:
    assert absolute_entries(":/opt/bin::bin:/usr/bin:.:") == "/opt/bin:/usr/bin"
    given = {
        "PATH": ":/opt/bin:tools",
        "LD_LIBRARY_PATH": "/opt/lib::",
        "PYTHONPATH": ":.",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
        "https_proxy": "http://proxy:3128",
    }
    assert isolated_environment(given) == {
        "PATH": "/opt/bin",
        "LD_LIBRARY_PATH": "/opt/lib",
        "PYTHONSAFEPATH": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
        "https_proxy": "http://proxy:3128",
    }


@pytest.mark.parametrize("path", [{}, {"PATH": ""}, {"PATH": "."}])
def test_without_a_path_the_usual_programs_are_found(path: dict[str, str]) -> None:
    assert shutil.which("sh", path=isolated_environment(path)["PATH"]) is not None


@pytest.mark.parametrize("interpreter", [Path(sys.executable), *OLDER[:1]], ids=lambda path: path.name)
def test_a_python_in_an_empty_folder_finds_no_planted_module(
    interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = plant_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    program = "import importlib.util\nfor name in ('numpy', 'onnxruntime'):\n    importlib.util.find_spec(name)\n"
    environment = isolated_environment({**os.environ, "PYTHONPATH": ":"})
    with empty_folder("ctseg-test-") as folder:
        done = subprocess.run([interpreter, "-c", program + "import planted"], env=environment, cwd=folder, check=False)
    assert done.returncode != 0  # no such module
    assert not what_ran(record)
    done = subprocess.run([interpreter, "-c", "import planted"], env={**os.environ, "PYTHONPATH": ":"}, check=False)
    assert done.returncode == 0  # it would have been found here
    assert {"planted", "sitecustomize"} <= set(what_ran(record))


def test_a_python_is_as_isolated_as_this_one() -> None:
    program = f"import sys\nsys.path.append({str(ROOT)!r})\nfrom ctseg.serving import isolation\n"
    program += "print(*isolation.python_command('-m', 'x')[1:])"
    for flags, words in ([], "-m x"), (["-I"], "-I -m x"):
        done = subprocess.run([sys.executable, *flags, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == words
    assert python_command("-m", "x")[0] == sys.executable


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Python chooses anew where temporary files go."""
    monkeypatch.setattr("tempfile.tempdir", None)
    return monkeypatch


@pytest.mark.parametrize("name", ["with space", "mit-ü", "quote'd", "missing/below"])
def test_a_temporary_folder_that_triton_does_not_bear_is_passed_over(
    name: str, tmp_path: Path, usual: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    if "missing" not in name:
        folder.mkdir()
    usual.setenv("TMPDIR", str(folder))
    assert temporary_parent(needed_bytes=0) == Path("/tmp")


@pytest.mark.parametrize(
    ("options", "found"), [("size=256k", r"small has 0\.\d MB free"), ("noexec", r"small lets no program run")]
)
def test_a_file_system_that_is_too_small_or_runs_nothing_is_passed_over(
    options: str, found: str, tmp_path: Path, usual: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
    ).returncode
    if mounted:
        pytest.skip("mounting is not allowed here")
    try:
        usual.setenv("TMPDIR", str(folder))
        assert temporary_parent(needed_bytes=1_000_000, runs_programs=True) == Path("/tmp")
        usual.setattr("ctseg.serving.isolation._OTHER_FOLDERS", ("/missing-one",))
        with pytest.raises(SetupError, match=rf"{found}.*/missing-one is missing; set TMPDIR"):
            temporary_parent(needed_bytes=1_000_000, runs_programs=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_the_current_folder_is_no_temporary_folder(tmp_path: Path, usual: pytest.MonkeyPatch) -> None:
    usual.chdir(tmp_path)
    usual.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path)])
    assert temporary_parent(needed_bytes=0) == Path("/tmp")
