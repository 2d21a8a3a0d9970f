"""A folder under a real limit on memory, typed as a user does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.control_group import control_group

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
LIMIT = 3 << 30


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="NEEDS LINUX: control groups")
def test_scans_that_do_not_fit_under_a_real_limit_are_refused_and_the_good_ones_are_done(tmp_path, demo_data):
    scans, labels = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for name in ("a", "z"):
        shutil.copy(demo_data / "images" / "STS_025_0000.nii.gz", scans / f"{name}.nii.gz")
    for spacing_mm in (50, 100):
        image = nib.Nifti1Image(np.ones((48, 60, 39), np.int16), np.diag([*[float(spacing_mm)] * 3, 1]))
        nib.save(image, scans / f"b{spacing_mm}.nii.gz")
    metres = nib.load(scans / "a.nii.gz")
    metres.header.set_xyzt_units("meter")
    nib.save(metres, scans / "c_metres.nii.gz")
    command = [sys.executable, "-m", "ctseg", "predict", "-i", str(scans), "-o", str(labels), "-m", "sarcoma"]
    command += ["--repository", str(ROOT / "model_repository"), "--disable_tta"]
    with control_group(LIMIT) as group:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=550, check=False,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "2 done, 0 skipped, 3 failed" in done.stdout
    assert sorted(path.name for path in labels.glob("*.nii.gz")) == ["a.nii.gz", "z.nii.gz"]
    for name, sides in (("b50", "596 x 1536 x 1229"), ("b100", "1193 x 3072 x 2458"), ("c_metres", "")):
        line = next(line for line in done.stderr.splitlines() if f"case {name}:" in line)
        assert "left of the memory limit of this container or job" in line
        assert sides in line
        assert "is the spacing in the file right?" in line
