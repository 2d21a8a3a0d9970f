"""A run is killed before every single change that it makes to an output folder; the next run makes it good."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import OutcomeStore
from tests.support.dicom_series import ct_series, write_series
from tests.support.label_maps import labels_of
from tests.support.threshold import ThresholdPredictor, write_scan

KILLED = r"""
import os, shutil, signal, sys
from pathlib import Path
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from tests.support.threshold import ThresholdPredictor

scans, base, folder, saves = *map(Path, sys.argv[1:4]), sys.argv[4] == "True"
formats = tuple(sys.argv[5:]) or None

def run_until(change, out):
    done = 0
    def count(event, args):
        nonlocal done
        if event in ("os.rename", "os.remove", "os.link") and str(out) in str(args[0]):
            if done == change:
                os.write(1, f"{change} {event} {Path(os.fsdecode(args[1 if len(args) > 3 else 0])).name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
    sys.addaudithook(count)  # the interpreter calls it before each change
    options = BatchOptions(save_probabilities=saves, output_formats=formats)
    segment_cases(find_cases(scans, channels=1), ThresholdPredictor(), out, options)

for change in range(1000):
    out = folder / str(change)
    shutil.copytree(base, out)
    child = os.fork()
    if not child:
        run_until(change, out)
        os._exit(0)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
"""


def run(scans: Path, out: Path, **options: object) -> dict[str, str]:
    report = segment_cases(find_cases(scans, channels=1), ThresholdPredictor(), out, BatchOptions(**options))
    return {case.case: case.status for case in report.cases}


@pytest.mark.parametrize(
    ("earlier", "saves"),
    [
        (True, True),
        pytest.param(True, False, marks=pytest.mark.full),
        pytest.param(False, True, marks=pytest.mark.full),
    ],
)
def test_a_kill_before_any_change_is_made_good_and_told_from_a_persons_edit(
    tmp_path: Path, earlier: bool, saves: bool
) -> None:
    scans, base, killed = (tmp_path / name for name in ("in", "base", "killed"))
    for folder in (scans, base, killed):
        folder.mkdir()
    write_scan(scans / "a.nii.gz", seed=1)
    if earlier:
        run(scans, base, save_probabilities=True)
    expected = write_scan(scans / "a.nii.gz", seed=2)
    words = [sys.executable, "-c", KILLED, str(scans), str(base), str(killed), str(saves)]
    driver = subprocess.run(words, timeout=400, check=False, capture_output=True, text=True)
    assert driver.returncode == 0, driver.stderr
    changes = driver.stdout.splitlines()
    assert {"os.link", "os.rename", "os.remove"} == {change.split()[1] for change in changes}
    assert [change.split()[2] for change in changes].count("a.nii.gz") >= 2  # whole in the run's folder, then in place
    for number, change in enumerate(changes):
        out, edited = killed / str(number), killed / f"edited{number}"
        shutil.copytree(out, edited)
        assert run(scans, out, continue_prediction=True, save_probabilities=saves)["a"] in ("ok", "skipped"), change
        assert np.array_equal(labels_of(out / "a.nii.gz"), expected), change
        assert (out / "a.npz").exists() == saves, change
        names = {".ctseg", "report.json", "report.csv", "a.nii.gz", *(["a.npz"] if saves else [])}
        assert {path.name for path in out.iterdir()} == names, change
        assert list((out / ".ctseg" / "runs").glob("[!.]*")) == [], change
        assert list((out / ".ctseg" / "claims").iterdir()) == [], change
        assert [file.name for file in OutcomeStore(out).read("a").outputs] == ["a.nii.gz", *["a.npz"] * saves]
        if (edited / "a.nii.gz").exists():
            (edited / "a.nii.gz").write_bytes(b"corrected by a person")
            assert run(scans, edited, save_probabilities=saves) == {"a": "kept"}, change
            assert (edited / "a.nii.gz").read_bytes() == b"corrected by a person", change
        else:
            assert run(scans, edited, save_probabilities=saves) == {"a": "ok"}, change
            assert np.array_equal(labels_of(edited / "a.nii.gz"), expected), change


def dicom_scan(folder: Path, value: int) -> None:
    stored = np.zeros((2, 18, 12), np.uint16)
    stored[:, 3:9, 2:7] = value
    tags = {"pixel_spacing_mm": (2.0, 1.0), "slice_spacing_mm": 3.0, "intercept": -1024.0}
    write_series(folder, ct_series(stored.shape, stored=stored, **tags).datasets)


def files_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".gz", ".dcm")}


@pytest.mark.full
def test_a_kill_before_any_change_leaves_no_half_of_a_dicom_object(tmp_path: Path) -> None:
    scans, base, killed, undisturbed = (tmp_path / name for name in ("in", "base", "killed", "undisturbed"))
    base.mkdir()
    killed.mkdir()
    formats = ("nifti", "dicom_seg", "dicom_rtstruct", "dicom_sr")
    dicom_scan(scans, 1500)
    run(scans, base, output_formats=formats)
    dicom_scan(scans, 0)  # the same instances, with other voxels
    run(scans, undisturbed, output_formats=formats)
    before, after = files_in(base), files_in(undisturbed)
    assert len(after) == 4
    assert all(before[name] != after[name] for name in after)
    words = [sys.executable, "-c", KILLED, str(scans), str(base), str(killed), "False", *formats]
    driver = subprocess.run(words, timeout=400, check=False, capture_output=True, text=True)
    assert driver.returncode == 0, driver.stderr
    changes = driver.stdout.splitlines()
    assert sum(change.endswith(".seg.dcm") for change in changes) >= 2
    for number, change in enumerate(changes):
        out = killed / str(number)
        assert all(content in (before.get(name), after.get(name)) for name, content in files_in(out).items()), change
        run(scans, out, continue_prediction=True, output_formats=formats)
        assert files_in(out) == after, change
