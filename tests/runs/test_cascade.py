"""Both stages of a cascade through a real server, together as a recipe and one after the other by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import SetupError
from ctseg.files.volume import read_volume
from ctseg.predict.options import BatchOptions
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel
from ctseg.serving.process import ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.toy_models import write_cascade
from tests.support.whole_scans import ScanClient


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_cascade(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for case in range(4):
        for channel in range(2):
            voxels = np.random.default_rng([case, channel]).normal(0, 1, (14, 10, 9)).astype(np.float32)
            image = nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
            nib.save(image, folder / f"case{case}_{channel:04d}.nii.gz")
    return folder


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.mark.live
def test_a_cascade_by_its_name_equals_its_stages_one_after_the_other(
    repository: Path, scans: Path, tmp_path: Path
) -> None:
    first, second, both = (ServedModel(name, repository=repository) for name in ("first", "second", "both"))
    report = segment_folder(scans, tmp_path / "both", both, BatchOptions(save_probabilities=True))
    assert [case.status for case in report.cases] == ["ok"] * 4
    made_by = report.cases[0].made_by
    assert made_by is not None
    assert [member.model for member in made_by.members] == ["first", "second"]
    segment_folder(scans, tmp_path / "previous", first, BatchOptions())
    options = BatchOptions(prev_stage_predictions=tmp_path / "previous", save_probabilities=True)
    segment_folder(scans, tmp_path / "by hand", second, options)
    together, by_hand = labels_in(tmp_path / "both"), labels_in(tmp_path / "by hand")
    previous = labels_in(tmp_path / "previous")
    assert together.keys() == by_hand.keys() == previous.keys()
    for name, labels in together.items():
        assert len(np.unique(labels)) == 3
        np.testing.assert_array_equal(labels, by_hand[name])
    for file in ("case0.npz", "case3.npz"):
        with np.load(tmp_path / "both" / file) as one, np.load(tmp_path / "by hand" / file) as other:
            np.testing.assert_array_equal(one["probabilities"], other["probabilities"])

    volume = read_volume([scans / f"case0_{channel:04d}.nii.gz" for channel in range(2)], "SimpleITKIO")
    whole = np.ascontiguousarray(volume.voxels), volume.spacing_mm
    expected, labels = together["case0.nii.gz"].transpose(), previous["case0.nii.gz"].transpose().astype(np.uint16)
    with embedded_server(repository, options=ServerOptions(prove=False)) as server:
        np.testing.assert_array_equal(ScanClient(server, "both").send(*whole).labels, expected)
        second = ScanClient(server, "second_scan")
        np.testing.assert_array_equal(second.send(*whole, previous=labels).labels, expected)
        assert "second needs the label map of first on the grid of the scan" in second.send(*whole).failure
        wrong = second.send(*whole, previous=labels[:-1]).failure
        assert "previous_labels: expected uint16 (9, 10, 14), found uint16 (8, 10, 14)" in wrong


@pytest.mark.live
def test_label_maps_of_the_first_stage_that_cannot_be_fail_their_case_alone(
    repository: Path, scans: Path, tmp_path: Path
) -> None:
    previous = tmp_path / "previous"
    segment_folder(scans, previous, ServedModel("first", repository=repository), BatchOptions())
    (previous / "case0.nii.gz").unlink()
    good = nib.load(previous / "case1.nii.gz")
    moved = good.affine.copy()
    moved[0, 3] += 2
    nib.save(nib.Nifti1Image(np.asarray(good.dataobj), moved), previous / "case1.nii.gz")
    other = np.asarray(nib.load(previous / "case2.nii.gz").dataobj).copy()
    other[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(other, good.affine), previous / "case2.nii.gz")

    second, out = ServedModel("second", repository=repository), tmp_path / "out"
    options = BatchOptions(prev_stage_predictions=previous, continue_prediction=True)
    report = segment_folder(scans, out, second, options)
    assert [case.status for case in report.cases] == ["failed"] * 3 + ["ok"]
    told = [case.error.message for case in report.cases if case.error is not None]
    assert "case0: expected a label map of the previous stage" in told[0]
    assert "case1.nii.gz: expected labels on the grid of the scan, found voxels up to 2 mm away" in told[1]
    assert "expected labels [1, 2] of first, found [7] too" in told[2]

    assert [case.status for case in segment_folder(scans, out, second, options).cases][3] == "skipped"
    changed = np.asarray(nib.load(previous / "case3.nii.gz").dataobj).copy()
    nib.save(nib.Nifti1Image(np.where(changed == 1, 2, changed), good.affine), previous / "case3.nii.gz")
    before = labels_in(out)["case3.nii.gz"]
    assert [case.status for case in segment_folder(scans, out, second, options).cases][3] == "ok"
    assert (labels_in(out)["case3.nii.gz"] != before).any()


def test_a_second_stage_without_its_first_and_label_maps_that_nobody_asked_for_are_refused(
    repository: Path, scans: Path, tmp_path: Path
) -> None:
    second, first = (ServedModel(name, repository=repository) for name in ("second", "first"))
    with pytest.raises(SetupError, match="second is the second stage of a cascade and needs the label maps of first"):
        segment_folder(scans, tmp_path / "out", second, BatchOptions())
    with pytest.raises(SetupError, match="no such folder of label maps"):
        segment_folder(scans, tmp_path / "out", second, BatchOptions(prev_stage_predictions=tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="first takes no label maps of a previous stage"):
        segment_folder(scans, tmp_path / "out", first, BatchOptions(prev_stage_predictions=tmp_path))
    assert not (tmp_path / "out").exists()
