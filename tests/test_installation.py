"""What an installation brings: the pinned versions, the extras, and a server that leaves numpy alone."""

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"


def test_constraints_are_the_pins_of_the_other_files():
    # constraints name no extras; torchvision's second version goes over the first, TensorRT's have folders of their
    # own, and what a bare GPU machine lacks is no set of its own
    apart = {"constraints.txt", "torchvision_cpu.txt", "gpu.txt"}
    apart |= {file.name for file in REQUIREMENTS.glob("tensorrt_*.txt")}
    files = [file for file in REQUIREMENTS.glob("*.txt") if file.name not in apart]
    pinned = {line for file in files for line in requirement_lines(file)}
    assert set(requirement_lines(REQUIREMENTS / "constraints.txt")) == pinned
    assert len(pinned) > 30


def test_a_package_has_one_version_for_a_python():
    seen: dict[tuple[str, str], str] = {}
    for line in requirement_lines(REQUIREMENTS / "constraints.txt"):
        name, version, marker = re.fullmatch(r"([\w.-]+)==([\w.]+)(?:; (.+))?", line).groups("")
        assert (name.lower(), marker) not in seen, line
        assert not marker or (name.lower(), "") not in seen, line
        seen[name.lower(), marker] = version


def test_the_serve_extra_does_not_bring_pytriton_whose_pin_lowers_numpy():
    for name, requirements in project()["optional-dependencies"].items():
        assert not any("pytriton" in requirement for requirement in requirements), name


def test_numpy_is_untouched_beside_the_embedded_server():
    assert importlib.metadata.version("nvidia-pytriton") == "0.7.0"
    assert "numpy<2.0" in (importlib.metadata.requires("nvidia-pytriton") or [""])[0].replace(" ", "")
    assert int(importlib.metadata.version("numpy").split(".")[0]) >= 2


def test_every_extra_is_explained_and_no_other():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE))
    assert explained == set(project()["optional-dependencies"])


def test_nobody_is_told_to_install_ctseg_from_an_index():
    # the name belongs to nobody there: whoever registered it would be installed by every reader
    told = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in pages_and_programs()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"pip install\s+[\"']?ctseg\b", line)
    ]
    assert not told, "\n".join(told)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirement_lines(file: Path) -> list[str]:
    """Return the pins of a file, without comments, references and extras."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [re.sub(r"\[.*?\]", "", line).replace("'", '"') for line in lines if line and not line.startswith("-")]


def pages_and_programs() -> list[Path]:
    """Return what a reader or user sees: pages, sources, scripts."""
    found = [path for name in ("ctseg", "benchmarks", "scripts", "docs", "docker") for path in (ROOT / name).rglob("*")]
    found += [*ROOT.glob("*.md"), *ROOT.glob("Dockerfile*"), ROOT / "Makefile"]
    return [path for path in found if path.is_file() and path.suffix in {".py", ".sh", ".md", ".yaml", ".txt", ""}]
