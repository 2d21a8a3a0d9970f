"""Label maps with other values or on another grid: refused with what would help, or brought to what nnU-Net needs."""

import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctseg.cli.main import main
from ctseg.files.geometry import Geometry
from ctseg.model_spec import SplineSegResampling
from ctseg.numerics.resample_labels import resample_labels
from ctseg.train.label_maps import labels_on_grid, renumbered
from tests.support.small_datasets import SHAPE_ZYX, affine, image, labels, pairs, write


def create(folder: Path, *words: str) -> tuple[int, Path]:
    (folder / "raw").mkdir(exist_ok=True)
    given = ["--images", str(folder / "images"), "--labels", str(folder / "labels")]
    code = main(["dataset", "create", "-d", "Dataset009_Toy", "--nnUNet_raw", str(folder / "raw"), *given, *words])
    return code, folder / "raw" / "Dataset009_Toy"


def written(dataset: Path, case: str = "p0") -> np.ndarray:
    return np.asarray(nibabel.load(dataset / "labelsTr" / f"{case}.nii.gz").dataobj).T


def test_a_mask_of_255_is_offered_to_be_renumbered_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(tmp_path, value=255)
    assert create(tmp_path, "--label", "lung=255")[0] == 2
    said = capsys.readouterr().err
    assert "consecutive from 0, found 0, 255: 1 to 254 missing (see --remap)" in said
    assert create(tmp_path, "--label", "lung=1")[0] == 2
    assert "labels 255 (2 voxels)" in (said := capsys.readouterr().err)
    assert "--remap" in said
    code, dataset = create(tmp_path, "--label", "lung=255", "--remap")
    assert code == 0
    np.testing.assert_array_equal(written(dataset), labels(1))
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "lung": 1}
    assert content["ctseg"] == {"source_values": {"background": 0, "lung": 255}}


def test_renumbered_labels_keep_their_order_and_ignore_comes_last() -> None:
    found = renumbered({"background": 0, "b": 40, "ignore": 7, "a": [3, 40]}, (40, 3))
    assert found.labels == {"background": 0, "b": 2, "ignore": 3, "a": [1, 2]}
    assert found.regions_class_order == (2, 1)
    assert found.values == {0: 0, 3: 1, 40: 2, 7: 3}
    assert renumbered({"background": 0, "a": 1}).values == {}


def finer(folder: Path) -> np.ndarray:
    """Label maps of half the voxel size that share their faces with the image; what is expected on its grid."""
    fine = affine()
    fine[:3, :3] /= 2
    fine[:3, 3] = (affine() @ [-0.25, -0.25, -0.25, 1])[:3]
    wanted = np.zeros(SHAPE_ZYX, np.uint8)
    wanted[1:3, 2:4, 3:6] = 1
    wanted[4, 0, 6] = 2  # in a corner
    for i in range(2):
        write(folder / "images" / f"p{i}.nii.gz", image(i))
        write(folder / "labels" / f"p{i}.nii.gz", wanted.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine)
    return wanted


def test_a_finer_mask_is_resampled_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = finer(tmp_path)
    assert create(tmp_path, "--label", "a=1", "--label", "b=2")[0] == 2
    said = capsys.readouterr().err
    assert "2 problems" in said
    assert "case p0: the label map lies on another grid than the image: image has shape (5, 6, 7)" in said
    assert "(see --resample_labels)" in said
    code, dataset = create(tmp_path, "--label", "a=1", "--label", "b=2", "--resample_labels")
    assert code == 0
    np.testing.assert_array_equal(written(dataset), wanted)
    np.testing.assert_allclose(nibabel.load(dataset / "labelsTr" / "p0.nii.gz").affine, affine(), atol=1e-4)


def test_a_mask_with_its_axes_the_other_way_round_comes_back_voxel_by_voxel(tmp_path: Path) -> None:
    write(tmp_path / "images" / "p0.nii.gz", image())
    turned = affine() @ np.array([[-1, 0, 0, SHAPE_ZYX[2] - 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    wanted = np.random.default_rng(5).integers(0, 3, SHAPE_ZYX).astype(np.uint8)
    # index (i, j, k) of the turned file is (6 - i, k, j) of the image
    write(tmp_path / "labels" / "p0.nii.gz", wanted[:, :, ::-1].transpose(1, 0, 2), turned)
    code, dataset = create(tmp_path, "--label", "a=1", "--label", "b=2", "--resample_labels")
    assert code == 0
    np.testing.assert_array_equal(written(dataset), wanted)


def test_resampling_is_nnunets_where_grids_share_their_faces() -> None:
    rng = np.random.default_rng(3)
    fine = rng.integers(0, 4, (7, 9, 11)).repeat(3, 0).repeat(3, 1).repeat(3, 2).astype(np.int16)
    shape, target = fine.shape, (13, 17, 20)
    spacing = np.array([1.5, 1.0, 0.75])  # x, y, z
    new = spacing * np.array(shape[::-1]) / np.array(target[::-1])
    source_affine = affine()
    source_affine[:3, :3] = source_affine[:3, :3] / np.array([0.8, 0.9, 2.5]) * spacing
    target_affine = source_affine.copy()
    target_affine[:3, :3] = source_affine[:3, :3] / spacing * new
    target_affine[:3, 3] = (source_affine @ [*(0.5 * new / spacing - 0.5), 1])[:3]
    made = labels_on_grid(fine, Geometry(shape, source_affine), Geometry(target, target_affine))
    kind = SplineSegResampling(force_separate_z=False)
    expected = resample_labels(fine, kind, target, tuple(spacing[::-1]), tuple(new[::-1]))
    assert (made != expected).mean() < 1e-3
    assert len(np.unique(made)) == 4


def test_where_two_are_equal_the_background_and_the_lower_label_win() -> None:
    coarse = np.array([[[0, 1, 2, 0]]], np.uint8)
    source, target = (Geometry((1, 1, size), np.diag([mm, 1.0, 1.0, 1.0])) for size, mm in ((4, 2.0), (7, 1.0)))
    assert labels_on_grid(coarse, source, target).ravel().tolist() == [0, 0, 1, 1, 2, 0, 0]


def test_outside_the_label_map_is_background_and_what_is_cut_off_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "images" / "p0.nii.gz", image())
    shifted = affine()
    shifted[:3, 3] = (affine() @ [0, 0, 3, 1])[:3]
    write(tmp_path / "labels" / "p0.nii.gz", np.ones(SHAPE_ZYX, np.uint8), shifted)
    logging.getLogger("ctseg").propagate = True
    with caplog.at_level(logging.INFO, "ctseg"):
        code, dataset = create(tmp_path, "--label", "a=1", "--resample_labels")
    assert code == 0
    assert written(dataset).sum(axis=(1, 2)).tolist() == [0, 0, 0, 42, 42]
    assert "case p0: 126 labelled voxels lie outside the image and are left out" in caplog.text


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        (np.diag([1.0, 1, 1, 1]), "the header of the label map says nothing of where it lies"),
        (np.diag([-1.0, -1, 1, 1]), "the header of the label map says nothing of where it lies"),
        (np.array([[2.0, 0, 0, 500], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]), "no labelled voxel lies within"),
    ],
)
def test_a_mask_of_another_place_is_refused_though_resampling_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], moved: np.ndarray, message: str
) -> None:
    write(tmp_path / "images" / "p0.nii.gz", image())
    write(tmp_path / "labels" / "p0.nii.gz", labels(), moved)
    assert create(tmp_path, "--label", "a=1", "--resample_labels")[0] == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("voxels", "code"), [(0.08, 0), (0.2, 2)])
def test_a_header_that_differs_by_less_than_a_tenth_of_a_voxel_is_taken_as_the_images(
    tmp_path: Path, voxels: float, code: int
) -> None:
    write(tmp_path / "images" / "p0.nii.gz", image())
    moved = affine()
    moved[0, 3] += 0.8 * voxels
    write(tmp_path / "labels" / "p0.nii.gz", labels(), moved)
    found, dataset = create(tmp_path, "--label", "a=1")
    assert found == code
    if code == 0:
        np.testing.assert_array_equal(written(dataset), labels())


def test_floats_that_are_whole_but_for_rounding_are_labels_and_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "images" / "p0.nii.gz", image())
    write(tmp_path / "labels" / "p0.nii.gz", labels().astype(np.float32) * 0.9999)
    code, dataset = create(tmp_path, "--label", "a=1")
    assert code == 0
    np.testing.assert_array_equal(written(dataset), labels())
    write(tmp_path / "labels" / "p0.nii.gz", labels().astype(np.float32) * 0.5)
    assert main(["dataset", "create", "-d", "Dataset010_Toy", "--images", str(tmp_path / "images"), "--labels",
                 str(tmp_path / "labels"), "--label", "a=1", "--nnUNet_raw", str(tmp_path / "raw")]) == 2  # fmt: skip
    assert "labels 0.5 (2 voxels)" in capsys.readouterr().err
