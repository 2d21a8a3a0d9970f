"""The wheels for a bare GPU machine: what is carried, and that what arrives is what was sent."""

import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from ctseg.serving.installation import _libpython_folder
from scripts.gpu_proof.environment import make_environment
from scripts.gpu_proof.wheels import LIB_DYNLOAD, MANIFEST, REQUIREMENTS, join, pack_modules, pins, store

ROOT = Path(__file__).parents[2]
BARE = ROOT / "scripts" / "gpu_proof" / "bare_machine.txt"
ON_THE_MACHINE = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux", "extra": ""}
NOT_NEEDED = {
    # of packages that are carried, but for what ctseg does not use of them
    "argparse": "batchgenerators: part of Python",
    "unittest2": "batchgenerators: its tests",
    "linecache2": "batchgenerators: its tests",
    "traceback2": "batchgenerators: its tests",
    "graphviz": "nnU-Net: drawings of networks",
    "imagecodecs": "nnU-Net: other readers than ctseg's",
    "yacs": "nnU-Net: leftover",
    "aiohttp": "tritonclient: HTTP",
    "gevent": "tritonclient: HTTP",
    "geventhttpclient": "tritonclient: HTTP",
    "cuda-python": "tritonclient: CUDA shared memory",
    "perf-analyzer": "tritonclient: its benchmark",
    "onnxruntime": "carried as onnxruntime-gpu",
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    contents = {"large.whl": bytes(range(256)) * 40, "small.whl": b"small", "lib.so.1.0": b"library" * 100}
    (tmp_path / "source").mkdir()
    for name, data in contents.items():
        (tmp_path / "source" / name).write_bytes(data)
    return contents


def test_pieces_are_joined_to_what_was_cut(files: dict[str, bytes], tmp_path: Path) -> None:
    folders = store(tmp_path / "source", tmp_path / "cut", 3000)
    assert len(folders) > 2
    for folder in folders:
        assert sum(file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST) <= 3000
    joined = join(tmp_path / "cut", tmp_path / "joined")
    assert {file.name: file.read_bytes() for file in joined} == files


def test_without_a_limit_nothing_is_cut(files: dict[str, bytes], tmp_path: Path) -> None:
    (folder,) = store(tmp_path / "source", tmp_path / "whole", None)
    assert {file.name for file in folder.iterdir()} == {*files, MANIFEST}
    assert {file.name: file.read_bytes() for file in join(tmp_path / "whole", tmp_path / "joined")} == files


def test_damaged_and_missing_pieces_are_all_named(files: dict[str, bytes], tmp_path: Path) -> None:
    store(tmp_path / "source", tmp_path / "cut", 3000)
    (damaged,) = (tmp_path / "cut").rglob("large.whl.001")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (missing,) = (tmp_path / "cut").rglob("small.whl")
    missing.unlink()
    with pytest.raises(ValueError, match=r"large\.whl\.001 is damaged") as error:
        join(tmp_path / "cut", tmp_path / "joined")
    assert "small.whl is missing" in str(error.value)


def test_a_folder_of_other_things_is_not_emptied(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="it holds other things and would be emptied"):
        store(tmp_path / "source", tmp_path / "mine", None)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    store(tmp_path / "source", tmp_path / "cut", 3000)
    assert len(store(tmp_path / "source", tmp_path / "cut", None)) == 1  # its own it empties
    (tmp_path / "cut" / "notes").touch()
    with pytest.raises(ValueError, match="it holds other things"):
        store(tmp_path / "source", tmp_path / "cut", None)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/b", "..", "*", ""])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "00").mkdir()
    piece = {"file": "a.whl", "size": 0, "sha256": ""}
    for manifest in ({name: [piece]}, {"a.whl": [{**piece, "file": name}]}):
        (tmp_path / "00" / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="expected names of files, found"):
            join(tmp_path, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_compiled_modules_travel_and_stand_last_in_the_environments_path(tmp_path: Path) -> None:
    modules = Path(sysconfig.get_config_var("DESTSHARED"))
    (tmp_path / "source").mkdir()
    pack_modules(modules, tmp_path / "source" / LIB_DYNLOAD)
    wheel = tmp_path / "wheel" / "ctseg_probe-1.0-py3-none-any.whl"
    write_wheel(wheel, "ctseg_probe")
    wheel.rename(tmp_path / "source" / wheel.name)
    store(tmp_path / "source", tmp_path / "cut", 1 << 20)
    python = make_environment(tmp_path / "made", tmp_path / "cut")
    carried = tmp_path / "made" / "environment" / "lib" / "lib-dynload"
    assert {file.name for file in carried.iterdir()} <= {file.name for file in modules.glob("*.so")}
    code = (
        "import sys; below = [p for p in sys.path if p != sys.argv[1]]; print(sys.argv[1] in sys.path); "
        "import math; print(math.__spec__.origin); "  # the system's own
        "del sys.modules['math']; sys.path = [p for p in below if 'lib-dynload' not in p] + [sys.argv[1]]; "
        "import math; print(math.__spec__.origin, math.floor(2.5))"
    )
    done = subprocess.run([str(python), "-c", code, str(carried)], capture_output=True, text=True, check=False)
    there, own, gap = done.stdout.splitlines()
    assert there == "True"
    assert not own.startswith(str(carried))
    assert gap.startswith(str(carried))
    assert gap.endswith(" 2")
    pth = python.parents[1] / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages" / "machine.pth"
    assert pth.read_text().splitlines()[-1] == str(carried)


def test_the_systems_libpython_goes_before_one_that_travelled(monkeypatch: pytest.MonkeyPatch) -> None:
    travelled, systems = Path(sys.prefix) / "lib", Path("/usr/lib64")
    there = {folder / f"libpython{sysconfig.get_python_version()}.so.1.0" for folder in (travelled, systems)}
    monkeypatch.setattr(Path, "exists", lambda path: path in there)
    assert _libpython_folder() == systems
    there = {path for path in there if path.parent == travelled}
    assert _libpython_folder() == travelled


def test_plain_wheels_need_no_manifest_and_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected wheels, found none: fill it by `make gpu-wheels`"):
        join(tmp_path, tmp_path / "joined")
    (tmp_path / "a.whl").touch()
    assert join(tmp_path, tmp_path / "joined") == [tmp_path / "a.whl"]


def test_an_environment_sees_the_packages_of_the_python_that_made_it_though_that_is_a_venv(tmp_path: Path) -> None:
    """``--system-site-packages`` would show those of the Python below it."""
    wheel = tmp_path / "wheels" / "ctseg_probe-1.0-py3-none-any.whl"
    write_wheel(wheel, "ctseg_probe")
    python = make_environment(tmp_path, tmp_path / "wheels")
    code = "import ctseg_probe, numpy, importlib.metadata as m; print(numpy.__file__, m.version('ctseg'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.split()[:1] == [np.__file__], done.stderr


def write_wheel(path: Path, name: str) -> None:
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")


def test_what_is_carried_covers_what_a_bare_machine_lacks() -> None:
    carried = {canonical(re.split("==", pin)[0]) for pin in pins(REQUIREMENTS)}
    there = {canonical(line) for line in BARE.read_text().splitlines() if line and not line.startswith("#")}
    needed = {canonical(item.name) for item in requirements_of("ctseg", {"itk", "fast-io", "serve", "deploy", "train"})}
    seen: set[str] = set()
    while needed - seen:
        name = (needed - seen).pop()
        seen.add(name)
        # what the machine has came with its own needs
        if name in there or name in NOT_NEEDED:
            continue
        needed |= {canonical(item.name) for item in requirements_of(name, set())}
    missing = needed - there - carried - NOT_NEEDED.keys()
    assert not missing, f"neither carried nor there: {sorted(missing)}"
    assert "nvidia-pytriton" in carried
    assert not carried & {"torch", "numpy", "scipy", "numba", "torchvision"}, "the machine's own go with its CUDA"


def test_what_is_carried_has_the_versions_that_are_tested() -> None:
    tested = dict(line.split(";")[0].split("==") for line in pins(ROOT / "requirements" / "constraints.txt"))
    newest = {canonical(name): version.strip() for name, version in tested.items()}
    for pin in pins(REQUIREMENTS):
        name, version = pin.split("==")
        if canonical(name) in newest:
            assert newest[canonical(name)] == version, pin


def requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    """Return what an installed package needs on the bare machine; nothing of one that is not installed here."""
    try:
        found = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    items = [Requirement(text) for text in found]
    environments = [{**ON_THE_MACHINE, "extra": extra} for extra in ("", *extras)]
    return [item for item in items if item.marker is None or any(item.marker.evaluate(e) for e in environments)]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip().lower())


def test_the_downloader_runs_without_the_environment_of_the_tests() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "scripts.gpu_proof.wheels", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
