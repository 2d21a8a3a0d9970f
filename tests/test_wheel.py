"""What an installation brings, asked of setuptools itself without building anything."""

from pathlib import Path

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
    needed |= {path.relative_to(ROOT) for path in (ROOT / "ctseg/evaluate/pages/templates").iterdir()}
    assert wheel_files == needed | {Path("ctseg/files/known_codes.csv"), Path("ctseg/py.typed")}
