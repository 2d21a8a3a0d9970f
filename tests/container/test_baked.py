"""An image carries bundles without voxels of patients: its build ends, and its start is refused, where one has them."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.container.baked import bundles_in_image, main, require_fit_for_image
from ctseg.container.entrypoint import serve
from ctseg.deploy.bundle import PARITY_SETS
from ctseg.errors import SetupError

ROOT = Path(__file__).parents[2]


def bundle(folder: Path, *held: str) -> Path:
    for name in held:
        (folder / name).mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / "ctseg.json").write_text("{}")
    return folder


def test_voxels_of_patients_and_a_bundle_without_a_phantom_end_the_build_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CTSEG_BUNDLES", str(tmp_path))
    for name, held, told in (
        ("new", ("parity_phantom",), ""),
        ("careless", ("parity", "parity_phantom"), f"{tmp_path}/careless/parity: voxels of patients in an image"),
        ("older", (), f"{tmp_path}/older: no parity_phantom/ there, .*: export the model again"),
    ):
        made = bundle(tmp_path / name, *held)
        if not told:
            require_fit_for_image([made])
            assert main() == 0
            continue
        with pytest.raises(SetupError, match=told):
            require_fit_for_image([tmp_path / "new", made])
        with caplog.at_level(logging.ERROR):
            assert main() == 2
    assert "SetupError: " in caplog.text
    with pytest.raises(SetupError, match="no bundle to carry"):
        require_fit_for_image([])


def test_what_is_mounted_is_not_in_the_image(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    line = "{} 25 0:22 / {} rw - overlay overlay rw\n"
    bundles = [Path("/bundles/a"), Path("/bundles/b c"), Path("/other/d")]
    for points, in_image in (
        (["/", "/proc"], bundles),
        (["/", "/bundles"], [Path("/other/d")]),
        (["/", "/bundles/b\\040c"], [Path("/bundles/a"), Path("/other/d")]),
        (["/", "/bundles/ab", "/other/d"], bundles[:2]),
    ):
        mounts.write_text("".join(line.format(36 + i, point) for i, point in enumerate(points)))
        assert bundles_in_image(bundles, mounts) == in_image
    assert bundles_in_image(bundles, tmp_path / "missing") == []


def test_a_start_with_voxels_of_patients_in_the_image_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(tmp_path / "m", "parity", "parity_phantom")
    monkeypatch.setattr("ctseg.container.entrypoint.bundles_in_image", lambda bundles: bundles)
    monkeypatch.setattr("ctseg.container.entrypoint.end_by_signals", lambda: None)
    monkeypatch.setattr("os.umask", lambda mode: mode)
    monkeypatch.setenv("CTSEG_BUNDLES", str(tmp_path))
    monkeypatch.setenv("CTSEG_MODELS", str(tmp_path / "models"))
    with pytest.raises(SetupError, match=r"m/parity: voxels of patients in an image: .*or mount the bundle"):
        serve([])


def test_the_build_of_the_image_looks_and_its_context_leaves_them_out() -> None:
    text = (ROOT / "Dockerfile.serve").read_text()
    copied = text.index("COPY ${BUNDLES} /bundles\n")
    assert text.index('RUN ["/opt/ctseg/venv/bin/python", "-I", "-m", "ctseg.container.baked"]\n') > copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored.index(f"**/{PARITY_SETS['scans']}") > ignored.index("!bundles")


def test_its_program_loads_no_network(tmp_path: Path) -> None:
    code = (
        "import sys; from ctseg.container.baked import main; main(); "
        "print([name for name in ('onnx', 'onnxruntime', 'torch', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
