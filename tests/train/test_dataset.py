"""Building and checking data sets: what is wrong is told, all of it, by case and by how much."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from ctseg.cli.main import main
from ctseg.errors import InputError, OutputError, SetupError
from ctseg.files.dataset_cases import ScanFolders
from ctseg.files.formats import ChannelFiles, read_channel
from ctseg.train.creation import create_dataset
from ctseg.train.dataset import DatasetDescription, check_and_write_case, start_dataset
from ctseg.train.scans import READER, label_problems
from ctseg.train.verify import verify_dataset

TUMOR = DatasetDescription(("CT",), {"background": 0, "tumor": 1})
SHAPE_ZYX = (5, 6, 7)


def orthogonal_affine() -> np.ndarray:
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, 0.9, 2.5])
    affine[:3, 3] = (11, -4, 30)
    return affine


def a_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    voxels = rng.normal(0, 100, SHAPE_ZYX).astype(np.float32)
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    labels[1, 2, 3] = 1
    labels[2, 2, 3] = 1
    return voxels, labels


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = start_dataset(tmp_path, 7, "Toy", TUMOR)
    for i in range(6):
        voxels, labels = a_case(i)
        check_and_write_case(folder, f"case{i}", [voxels], labels, orthogonal_affine())
    return folder


def test_a_labelling_tool_needs_no_torch() -> None:
    code = (
        "import sys, ctseg.train.dataset as d; d.check_and_write_case, d.start_dataset; "
        "unneeded = {'torch', 'nnunetv2', 'monai', 'SimpleITK', 'highdicom', 'ctseg.files.dicom.headers'}; "
        "assert not unneeded & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_written_case_has_its_voxels_where_they_belong(dataset: Path) -> None:
    voxels, _ = a_case(3)
    image = nibabel.load(dataset / "imagesTr" / "case3_0000.nii.gz")
    label = nibabel.load(dataset / "labelsTr" / "case3.nii.gz")
    # nibabel's axes are (x, y, z)
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels.transpose(2, 1, 0))
    assert label.get_data_dtype() == np.uint8
    where = np.argwhere(np.asarray(label.dataobj) == 1)
    assert where.tolist() == [[3, 2, 1], [3, 2, 2]]
    expected_mm = orthogonal_affine() @ [3, 2, 1, 1]
    np.testing.assert_allclose(label.affine @ [3, 2, 1, 1], expected_mm, atol=1e-4)
    itk = sitk.ReadImage(str(dataset / "labelsTr" / "case3.nii.gz"))
    lps = np.array(itk.TransformIndexToPhysicalPoint((3, 2, 1)))
    np.testing.assert_allclose(lps * [-1, -1, 1], expected_mm[:3], atol=1e-4)


def test_numtraining_follows_and_a_case_can_be_replaced(dataset: Path) -> None:
    assert json.loads((dataset / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    voxels, labels = a_case(9)
    check_and_write_case(dataset, "case0", [voxels], labels, orthogonal_affine())
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 6


def test_all_problems_of_a_handed_over_case_are_told_at_once(dataset: Path) -> None:
    voxels, labels = a_case()
    voxels[0, 0, 0] = np.nan
    labels = labels.astype(np.float32)
    labels[0, 0, 1] = 4
    with pytest.raises(InputError) as caught:
        check_and_write_case(dataset, "bad name?", [voxels, voxels[:, :, 1:]], labels, np.zeros((4, 4)))
    message = str(caught.value)
    for part in (
        "case bad name?",
        "a case's name has letters",
        "expected 1 channels (CT), found 2",
        "expected a finite 4 x 4 affine",
        "channel 1 has shape (5, 6, 6), the labels (5, 6, 7)",
        "channel 0 has 1 voxels that are NaN",
        "labels are stored as float32: write integers",
        "labels 4 (1 voxels) are none of the data set's, which are 0, 1",
    ):
        assert part in message
    assert len(list((dataset / "imagesTr").iterdir())) == 6


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_create_keeps_voxels_and_grid_of_every_format(tmp_path: Path, ending: str) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    voxels, labels = a_case()
    for suffix, array in (("ct", voxels), ("gtv", labels.astype(np.float32))):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.8, 0.9, 2.5))
        image.SetOrigin((11, -4, 30))
        image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(pairs / f"p1_{suffix}{ending}"))
    folder = create_dataset(
        tmp_path / "raw", 9, "Toy", TUMOR,
        ScanFolders(pairs, pairs, ("_ct",), "_gtv"),
    )  # fmt: skip
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.nii.gz")) == [
        "imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz",
    ]  # fmt: skip
    image = sitk.ReadImage(str(folder / "imagesTr" / "p1_0000.nii.gz"))
    label = sitk.ReadImage(str(folder / "labelsTr" / "p1.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), labels)
    assert label.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    for part in (image, label):
        np.testing.assert_allclose(part.TransformIndexToPhysicalPoint((3, 2, 1)), (11 - 1.8, -4 + 2.4, 32.5), atol=1e-4)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("dtype", "found"), [("int64", None), ("uint16", None), ("float64", "float64"), ("float32", "float32")]
)
def test_labels_are_told_by_the_type_in_the_file(tmp_path: Path, ending: str, dtype: str, found: str | None) -> None:
    image = sitk.GetImageFromArray(a_case()[1].astype(dtype))
    sitk.WriteImage(image, str(tmp_path / f"labels{ending}"))
    label = read_channel(ChannelFiles((tmp_path / f"labels{ending}",)), READER)
    np.testing.assert_array_equal(label.voxels, a_case()[1])
    messages = [p.message for p in label_problems(label.voxels, {0, 1}, case="a", stored=label.stored_dtype)]
    assert messages == ([] if found is None else [f"case a: labels are stored as {found}: write integers (uint8)"])


def test_created_labels_have_the_very_header_of_their_image(tmp_path: Path) -> None:
    voxels, labels = a_case()
    image = nibabel.Nifti1Image(voxels.T, orthogonal_affine())
    image.set_qform(orthogonal_affine(), 1)
    image.set_sform(orthogonal_affine(), 2)
    nibabel.save(image, tmp_path / "p1_ct.nii")
    # rounded otherwise, by less than a hundredth of a millimetre
    shifted = orthogonal_affine()
    shifted[0, 3] += 0.001
    nibabel.save(nibabel.Nifti1Image(labels.T, shifted), tmp_path / "p1_gtv.nii.gz")
    folder = create_dataset(
        tmp_path / "raw", 9, "Toy", TUMOR,
        ScanFolders(tmp_path, tmp_path, ("_ct",), "_gtv"),
    )  # fmt: skip
    for file in (folder / "imagesTr" / "p1_0000.nii.gz", folder / "labelsTr" / "p1.nii.gz"):
        header = nibabel.load(file).header
        for field in ("qform_code", "sform_code", "quatern_d", "qoffset_x", "srow_x", "pixdim"):
            np.testing.assert_array_equal(header[field], image.header[field], err_msg=f"{file.name} {field}")


def test_a_sheared_grid_is_refused(dataset: Path) -> None:
    voxels, labels = a_case()
    sheared = orthogonal_affine()
    sheared[0, 2] += 0.3  # a tilted gantry
    with pytest.raises(InputError, match="case tilted: the axes of the affine are not at right angles"):
        check_and_write_case(dataset, "tilted", [voxels], labels, sheared)


def test_a_full_disk_is_told_and_leaves_no_half_case(dataset: Path) -> None:
    voxels, labels = np.random.default_rng(0).normal(size=(20, 30, 40)), np.zeros((20, 30, 40), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, hard))
    try:
        with pytest.raises(OutputError, match=r"case9_0000\.nii\.gz: cannot be written: File too large"):
            check_and_write_case(dataset, "case9", [voxels], labels, orthogonal_affine())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(dataset.rglob("*case9*"))


def test_several_channels_and_test_images(tmp_path: Path) -> None:
    for name, files in (
        ("images", ["a_0000", "a_0001"]), ("labels", ["a"]), ("tests", ["t_0000", "t_0001"]),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        for i, file in enumerate(files):
            array = a_case(i)[1 if name == "labels" else 0]
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name / f"{file}.nrrd"))
    folder = create_dataset(
        tmp_path / "raw", 9, "Toy", DatasetDescription(("CT", "PET"), {"background": 0, "tumor": 1}),
        ScanFolders(tmp_path / "images", tmp_path / "labels", test_images=tmp_path / "tests"),
    )  # fmt: skip
    assert sorted(file.name for file in (folder / "imagesTs").iterdir()) == ["t_0000.nii.gz", "t_0001.nii.gz"]
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT", "1": "PET"}
    second = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / "a_0001.nii.gz")))
    np.testing.assert_array_equal(second, a_case(1)[0])


def test_create_writes_nothing_when_something_is_wrong(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    voxels, labels = a_case()
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "images" / "good.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(labels * 3), str(tmp_path / "labels" / "good.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "images" / "alone.nii.gz"))
    (tmp_path / "labels" / "lost.nii.gz").write_bytes(b"")
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "images" / "alone.nrrd"))
    with pytest.raises(InputError) as caught:
        create_dataset(tmp_path / "raw", 9, "Toy", TUMOR, ScanFolders(tmp_path / "images", tmp_path / "labels"))
    for part in (
        "4 problems",
        "case alone: alone.nii.gz and alone.nrrd in",
        "case alone: no label map in",
        "case lost: no image in",
        "labels 3 (2 voxels)",
    ):
        assert part in str(caught.value)
    assert not any((tmp_path / "raw").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label_suffix", "_gtv"], "no names end in _gtv, found a.nii.gz\n (see --label_suffix)"),
        (["--label_suffix", "_gtv", "--image_suffix", "_ct"],
         "ending in .nii.gz, .nii, .nrrd, .mha, .nhdr, .mhd, .gipl after _ct, _gtv, or DICOM series with segmentations "
         "or structure sets that refer to them, found a.nii.gz, a.nii.gz (see --image_suffix, --label_suffix)"),
        (["--images", "gone"], "gone: no such folder (see --images)"),
        (["--test_images", __file__], "is a file, expected a folder (see --test_images)"),
        (["--label", "whole=1,2"], "of the 2 regions which value it writes, found none: one of its own values, the "
         "whole before its parts (see --regions_class_order)"),
    ],
)  # fmt: skip
def test_create_tells_which_flag_is_wrong_and_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    voxels, labels = a_case()
    for name, array in (("images", voxels), ("labels", labels)):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name / "a.nii.gz"))
    (tmp_path / "raw").mkdir()
    places = {"--nnUNet_raw": "raw", "--images": "images", "--labels": "labels"}
    given = [word for flag, name in places.items() for word in (flag, str(tmp_path / name))]
    command = ["dataset", "create", "-d", "9", "--name", "Toy", "--label", "tumor=1", *given, *words]
    assert main(command) == 2
    assert message.replace("\n", "") in capsys.readouterr().err.replace("\n", "")
    assert not any((tmp_path / "raw").iterdir())


def test_test_images_are_told_with_the_rest(tmp_path: Path) -> None:
    for name in ("images", "labels", "tests"):
        (tmp_path / name).mkdir()
    voxels, labels = a_case()
    for channel in range(2):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "images" / f"a_{channel:04d}.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(labels * 3), str(tmp_path / "labels" / "a.nii.gz"))
    (tmp_path / "tests" / "t_0000.nii.gz").write_bytes(b"no scan")
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "tests" / "u_0001.nii.gz"))
    for channel in range(2):
        (tmp_path / "tests" / f"v_{channel:04d}.nii.gz").write_bytes(b"no scan")
    description = DatasetDescription(("CT", "PET"), {"background": 0, "tumor": 1})
    folders = ScanFolders(tmp_path / "images", tmp_path / "labels", test_images=tmp_path / "tests")
    with pytest.raises(InputError) as caught:
        create_dataset(tmp_path / "raw", 9, "Toy", description, folders)
    for part in (
        "5 problems",
        "test case t: channels [1] of 2 are missing",
        "test case u: channels [0] of 2 are missing",
        "labels 3 (2 voxels)",
        "v_0000.nii.gz: expected a NIfTI file",
        "v_0001.nii.gz: expected a NIfTI file",
    ):
        assert part in str(caught.value)
    assert not any((tmp_path / "raw").iterdir())


def test_half_written_files_of_others_are_no_cases(dataset: Path) -> None:
    (dataset / "labelsTr" / ".case9.nii.gz.host.1.ab.tmp.nii.gz").write_bytes(b"half")
    voxels, labels = a_case(9)
    check_and_write_case(dataset, "case0", [voxels], labels, orthogonal_affine())
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 6
    assert verify_dataset(dataset, nnunet_check=False).problems == ()


def test_a_taken_id_is_refused(dataset: Path) -> None:
    with pytest.raises(SetupError, match="id 7 is taken"):
        start_dataset(dataset.parent, 7, "Other", TUMOR)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"tumor": 1}, None, "'background' must be 0"),
        ({"background": 0, "tumor": 2}, None, r"consecutive from 0, found 0, 2: 1 missing"),
        ({"background": 0, "ignore": 1, "tumor": 2}, None, "'ignore' must be the highest"),
        ({"background": 0}, None, "there is nothing but background"),
        ({"background": 0, "whole": [1, 2], "core": 2}, (1, 3), "regions_class_order has 3, which no region has"),
        ({"background": 0, "whole": [1, 2], "ignore": 3}, (3,), "regions_class_order has 3, which no region has"),
        (
            {"background": 0, "whole": [1, 2], "core": 2},
            None,
            "for each of the 2 regions which value it writes, found none",
        ),
    ],
)
def test_labels_that_nnunet_refuses_are_refused(labels: dict[str, Any], order: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DatasetDescription(("CT",), labels, order)


def break_six_ways(folder: Path) -> None:
    """Six different faults in six cases."""

    def image(case: str) -> sitk.Image:
        return sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))

    def label(case: str) -> sitk.Image:
        return sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz"))

    def write(what: sitk.Image, case: str) -> None:
        sitk.WriteImage(what, str(folder / "labelsTr" / f"{case}.nii.gz"))

    other = label("case0")
    other[0, 0, 0] = 5
    write(other, "case0")
    moved = label("case1")
    moved.SetOrigin((11 - 22 + 3.0, moved.GetOrigin()[1] + 4.0, moved.GetOrigin()[2]))
    write(moved, "case1")
    write(sitk.Crop(label("case2"), (0, 0, 1), (0, 0, 0)), "case2")
    write(sitk.Cast(label("case3"), sitk.sitkFloat32), "case3")
    (folder / "labelsTr" / "case4.nii.gz").unlink()
    holed = image("case5")
    holed[1, 1, 1] = float("nan")
    sitk.WriteImage(holed, str(folder / "imagesTr" / "case5_0000.nii.gz"))


def test_six_faults_give_six_named_problems_in_one_run(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_six_ways(dataset)
    assert main(["dataset", "verify", "-d", "7", "--nnUNet_raw", str(dataset.parent), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    found = {(problem["case"], problem["kind"]): problem["message"] for problem in report["problems"]}
    assert set(found) == {
        ("case0", "unexpected_label"),
        ("case1", "origin"),
        ("case2", "shape"),
        ("case2", "origin"),
        ("case3", "float_labels"),
        ("case4", "missing_label_file"),
        ("case5", "nan"),
    }
    assert found["case0", "unexpected_label"].startswith("case case0: labels 5 (1 voxels) are none of the data set's")
    assert found["case1", "origin"].endswith("5 mm apart")
    assert "image has shape (5, 6, 7) (z, y, x), the labels (4, 6, 7)" in found["case2", "shape"]
    assert "2.5 mm apart" in found["case2", "origin"]
    assert "1 voxels of case5_0000.nii.gz are NaN" in found["case5", "nan"]


def test_what_dataset_json_says_is_checked_against_the_files(dataset: Path) -> None:
    file = dataset / "dataset.json"
    content = json.loads(file.read_text())
    content.update(numTraining=20, labels={"background": 0, "tumor": 1, "node": 2, "bone": 4})
    file.write_text(json.dumps(content))
    (dataset / "imagesTr" / "case0_0001.nii.gz").write_bytes((dataset / "imagesTr" / "case0_0000.nii.gz").read_bytes())
    (dataset / "imagesTr" / "case1_0000.nii.gz").write_bytes(b"no scan")
    (dataset / "labelsTr" / "extra.nii.gz").write_bytes((dataset / "labelsTr" / "case0.nii.gz").read_bytes())
    report = verify_dataset(dataset)
    assert {problem.kind for problem in report.problems} == {
        "num_training", "labels_not_consecutive", "surplus_channel", "unreadable", "surplus_label_file",
    }  # fmt: skip
    text = str(report)
    assert "numTraining is 20, found 6 training cases" in text
    assert "note: no label map has node (2), bone (4): a model learns nothing of what is never there" in text


def test_missing_channels_and_files_of_other_names_are_told(dataset: Path) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "CT", "1": "PET"}}))
    for case in range(1, 6):
        shutil.copy(dataset / "imagesTr" / f"case{case}_0000.nii.gz", dataset / "imagesTr" / f"case{case}_0001.nii.gz")
    (dataset / "imagesTr" / "notes.txt").write_text("")
    (dataset / "labelsTr" / "case1.nrrd").write_bytes(b"")
    assert [(problem.kind, problem.message) for problem in verify_dataset(dataset).problems] == [
        ("surplus_file", "imagesTr/notes.txt: expected names like case_0000.nii.gz"),
        ("surplus_file", "labelsTr/case1.nrrd: expected names like case.nii.gz"),
        ("missing_channel", "case case0: channels [1] of 2 are missing"),
    ]


def test_spacing_and_direction_are_told_by_how_much(dataset: Path) -> None:
    file = str(dataset / "labelsTr" / "case0.nii.gz")
    label = sitk.ReadImage(file)
    label.SetSpacing((0.8, 0.9, 3.0))
    label.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(label, file)
    found = {problem.kind: problem.message for problem in verify_dataset(dataset).problems}
    assert found["spacing"].endswith("0.5 mm apart")
    assert "by up to 180 degrees" in found["direction"] or "by up to 160 degrees" in found["direction"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_sound_dataset_passes_nnunets_own_check_too(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify_dataset_integrity", "-d", "7", "--nnUNet_raw", str(dataset.parent)]) == 0
    assert "nnU-Net's own check found nothing" in capsys.readouterr().out


def test_cases_listed_in_dataset_json_are_checked(dataset: Path) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    content["dataset"] = {
        "case0": {"images": [str(dataset / "imagesTr" / "case0_0000.nii.gz")], "label": "labelsTr/case0.nii.gz"},
        "gone": {"images": ["imagesTr/gone_0000.nii.gz"], "label": "labelsTr/case1.nii.gz"},
    }
    content["numTraining"] = 2
    (dataset / "dataset.json").write_text(json.dumps(content))
    kinds = [(problem.case, problem.kind) for problem in verify_dataset(dataset).problems]
    assert kinds == [("gone", "missing_file")]
