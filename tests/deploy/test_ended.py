"""Commands of deployment that are told to end, or killed, while they work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import pytest

from ctseg.deploy.bundle import read_bundle


@pytest.fixture
def scan(demo_data: Path, tmp_path: Path) -> Path:
    """A piece of a real scan, as a file."""
    image = nibabel.load(sorted((demo_data / "images").glob("*.nii.gz"))[0])
    piece = image.slicer[30:110, 30:110, 10:34]
    nibabel.save(piece, tmp_path / "scan_0000.nii.gz")
    return tmp_path / "scan_0000.nii.gz"


def export(trained: Path, scan: Path, output: Path, temporary: Path) -> "subprocess.Popen[bytes]":
    words = ["export", "-i", str(trained), "-f", "0", "-o", str(output), "--cases", str(scan), "--precision", "fp16"]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ctseg", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def hidden_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_export_that_is_ended_leaves_no_hidden_folder_for_long(
    trained_unet: Path, scan: Path, tmp_path: Path, number: signal.Signals
) -> None:
    bundles, temporary = tmp_path / "bundles", tmp_path / "temporary"
    bundles.mkdir()
    temporary.mkdir()
    process = export(trained_unet, scan, bundles / "unet", temporary)
    while not (hidden := hidden_in(bundles)) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    status = process.wait(timeout=300)
    assert len(hidden) == 1
    if number != signal.SIGKILL:
        assert status == (130 if number == signal.SIGINT else 143)
        assert list(bundles.iterdir()) == list(temporary.iterdir()) == []
        return
    assert hidden_in(bundles) == hidden
    assert export(trained_unet, scan, bundles / "unet", temporary).wait(timeout=300) == 0
    assert [path.name for path in bundles.iterdir()] == ["unet"]
    assert read_bundle(bundles / "unet").spec.parity.state == "proven"
    assert not [path for path in temporary.iterdir() if "ctseg" in path.name]  # ONNX Runtime leaves a file of its own
