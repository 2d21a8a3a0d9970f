"""Data sets of DICOM series, whose labels are segmentations and structure sets."""

import json
import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from ctseg.cli.main import main
from ctseg.errors import InputError, SetupError
from ctseg.files.dataset_cases import ScanFolders
from ctseg.files.dicom.choosing import SeriesRules
from ctseg.files.dicom.results import Segment
from ctseg.files.dicom.segmentation import write_segmentation
from ctseg.files.dicom.structure_set import write_structure_set
from ctseg.train.creation import create_dataset
from ctseg.train.description import DatasetDescription
from ctseg.train.dicom_labels import RegionRules
from ctseg.train.verify import verify_dataset
from tests.support.dicom_results import KIDNEY, LIVER, TUMOUR, result_of, write_ct
from tests.support.dicom_series import ct_series, write_series

SHAPE = (4, 20, 24)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[1:3, 3:15, 4:20] = 1
LABELS[2, 5:9, 6:9] = 2
LABELS[3, 0, 0] = 2
SEGMENTS = (Segment(1, "Liver", (1, 2), LIVER), Segment(2, "GTV_1", (2,), TUMOUR), Segment(3, "Kidney", (9,), KIDNEY))
REGIONS = DatasetDescription(("CT",), {"background": 0, "liver": (1, 2), "tumor": 2}, (1, 2))
PLAIN = DatasetDescription(("CT",), {"background": 0, "liver": 1, "tumor": 2})
GTV = RegionRules({"tumor": "gtv*"})


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Two patients: one with a structure set, one with a segmentation; and a third one without labels."""
    root = tmp_path_factory.mktemp("tree")
    for number, write in ((1, write_structure_set), (2, write_segmentation), (3, None)):
        folder = root / f"Doe_{number}"
        series = write_ct(folder / "ct", ct_series(SHAPE, study=number, slope=1.0, intercept=-1000.0))
        if write is not None:
            write(folder / "labels", LABELS, result_of(series, segments=SEGMENTS))
    return root


def label_maps(dataset: Path) -> list[np.ndarray]:
    """(z, y, x)"""
    return [np.asarray(nibabel.load(file).dataobj).T for file in sorted((dataset / "labelsTr").iterdir())]


def test_segmentations_and_structure_sets_become_the_same_label_maps(tree, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = create_dataset(tmp_path, 1, "Toy", REGIONS, ScanFolders(tree, tree), GTV)
    maps = label_maps(dataset)
    assert len(maps) == 2
    for found in maps:
        assert found.dtype == np.uint8
        assert np.array_equal(found, LABELS)
    image = nibabel.load(next((dataset / "imagesTr").iterdir()))
    expected = ct_series(SHAPE, study=1, intercept=-1000.0)
    assert np.array_equal(np.asarray(image.dataobj).T, expected.hu)
    assert np.abs(image.affine - expected.affine_ras).max() < 2e-5
    assert verify_dataset(dataset, nnunet_check=False).problems == ()
    told = [record.message for record in caplog.records if record.message.startswith("left out: 1 series to which no")]
    assert len(told) == 1
    assert not any("Doe" in record.message or str(tree) in record.message for record in caplog.records)


def test_images_and_labels_may_lie_in_two_trees(tree, tmp_path):
    series = write_ct(tmp_path / "images", ct_series(SHAPE))
    (tmp_path / "labels" / "deep").mkdir(parents=True)
    write_structure_set(tmp_path / "labels" / "deep" / "rt", LABELS, result_of(series, segments=SEGMENTS))
    folders = ScanFolders(tmp_path / "images", tmp_path / "labels", test_images=tree / "Doe_3")
    dataset = create_dataset(tmp_path / "raw", 1, "Toy", REGIONS, folders, GTV)
    assert np.array_equal(label_maps(dataset)[0], LABELS)
    assert len(list((dataset / "imagesTs").iterdir())) == 1
    (tmp_path / "labels" / "study1.nii.gz").touch()
    with pytest.raises(InputError, match="a DICOM series takes segmentations and structure sets as labels"):
        create_dataset(tmp_path / "raw", 2, "Toy", REGIONS, folders, GTV)


def test_names_and_series_are_chosen_by_rules(tree, tmp_path):
    folders = ScanFolders(tree, tree, series=SeriesRules(descriptions=("thorax*",)), case_name_from=("StudyID",))
    dataset = create_dataset(tmp_path, 1, "Toy", REGIONS, folders, GTV)
    assert sorted(file.name for file in (dataset / "labelsTr").iterdir()) == ["1.nii.gz", "2.nii.gz"]
    folders = ScanFolders(tree, tree, series=SeriesRules(descriptions=("head*",)))
    with pytest.raises(InputError, match="no scans in"):
        create_dataset(tmp_path, 2, "Toy", REGIONS, folders, GTV)


def test_several_regions_that_fit_a_name_are_one_label(tree, tmp_path):
    description = DatasetDescription(("CT",), {"background": 0, "any": 1})
    dataset = create_dataset(tmp_path, 1, "Toy", description, ScanFolders(tree, tree), RegionRules({"any": "*"}))
    assert np.array_equal(label_maps(dataset)[0], LABELS > 0)


def test_the_background_of_a_label_map_is_no_segment(tmp_path):
    series = write_ct(tmp_path / "images", ct_series(SHAPE))
    segments = (Segment(1, "liver", (1,), LIVER), Segment(2, "tumor", (2,), TUMOUR))
    result = result_of(series, segments=segments, segmentation_type="LABELMAP")
    write_segmentation(tmp_path / "images" / "seg", LABELS, result)
    folders = ScanFolders(tmp_path / "images", tmp_path / "images")
    assert np.array_equal(label_maps(create_dataset(tmp_path / "raw", 1, "Toy", PLAIN, folders))[0], LABELS)
    description = DatasetDescription(("CT",), {"background": 0, "any": 1})
    dataset = create_dataset(tmp_path / "raw", 2, "Toy", description, folders, RegionRules({"any": "*"}))
    assert np.array_equal(label_maps(dataset)[0], LABELS > 0)


def test_many_labels_are_read_in_parts_that_fit_into_memory(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("ctseg.train.dicom_labels._MOST_BYTES", LABELS.size)
    dataset = create_dataset(tmp_path, 1, "Toy", REGIONS, ScanFolders(tree, tree), GTV)
    assert all(np.array_equal(found, LABELS) for found in label_maps(dataset))


def test_overlapping_labels_need_an_order_or_regions(tree, tmp_path):
    with pytest.raises(InputError, match="13 voxels are liver and tumor, which no value stands for") as caught:
        create_dataset(tmp_path, 1, "Toy", PLAIN, ScanFolders(tree, tree), GTV)
    assert caught.value.settings == ("precedence",)
    assert not list(tmp_path.iterdir())
    first = RegionRules(GTV.names, ("tumor", "liver"))
    assert np.array_equal(
        label_maps(create_dataset(tmp_path, 1, "Toy", PLAIN, ScanFolders(tree, tree), first))[0], LABELS
    )
    last = RegionRules(GTV.names, ("liver", "tumor"))
    found = label_maps(create_dataset(tmp_path, 2, "Toy", PLAIN, ScanFolders(tree, tree), last))[0]
    assert np.array_equal(found, LABELS > 0)


def test_a_part_outside_of_its_whole_is_told(tmp_path):
    series = write_ct(tmp_path / "images", ct_series(SHAPE))
    segments = (Segment(1, "liver", (1,), LIVER), Segment(2, "tumor", (2,), TUMOUR))
    write_structure_set(tmp_path / "images" / "rt", LABELS, result_of(series, segments=segments))
    with pytest.raises(InputError, match="13 voxels are tumor, which no value stands for"):
        create_dataset(tmp_path / "raw", 1, "Toy", REGIONS, ScanFolders(tmp_path / "images", tmp_path / "images"))


def test_a_label_that_nothing_is_called_refuses_the_case_or_is_told(tree, tmp_path, caplog):
    with pytest.raises(InputError, match=r"nothing is called 'tumor' \(tumor\), found Liver, GTV_1, Kidney") as caught:
        create_dataset(tmp_path, 1, "Toy", REGIONS, ScanFolders(tree, tree))
    assert caught.value.settings == ("roi",)
    rules = RegionRules(missing_is_empty=True)
    with caplog.at_level(logging.WARNING):
        dataset = create_dataset(tmp_path, 1, "Toy", PLAIN, ScanFolders(tree, tree), rules)
    assert np.array_equal(label_maps(dataset)[0], LABELS > 0)
    assert sum("nothing is called 'tumor'" in record.message for record in caplog.records) == 2


def test_a_label_in_two_objects_is_refused(tmp_path):
    series = write_ct(tmp_path / "images", ct_series(SHAPE))
    result = result_of(series, segments=SEGMENTS)
    write_structure_set(tmp_path / "images" / "rt", LABELS, result)
    write_segmentation(tmp_path / "images" / "seg", LABELS, result)
    with pytest.raises(InputError, match=r"liver is in RTSTRUCT \(\w+\) and in SEG \(\w+\): take all but one away"):
        create_dataset(tmp_path / "raw", 1, "Toy", REGIONS, ScanFolders(tmp_path / "images", tmp_path / "images"), GTV)


def test_what_is_wrong_with_several_cases_is_told_at_once(tmp_path):
    images = tmp_path / "images"
    for number in (1, 2):
        series = write_ct(images / str(number), ct_series(SHAPE, study=number))
        write_structure_set(images / f"rt{number}", LABELS, result_of(series, segments=SEGMENTS))
    shutil.rmtree(images / "1")
    write_series(images / "1", ct_series(SHAPE, study=1, shear_degrees=14.0).datasets)
    dataset = pydicom.dcmread(images / "rt2")
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        contour.ContourData[2::3] = [value + 1 for value in contour.ContourData[2::3]]
    dataset.save_as(images / "rt2")
    with pytest.raises(InputError, match="2 problems") as caught:
        create_dataset(tmp_path / "raw", 1, "Toy", REGIONS, ScanFolders(images, images), GTV)
    assert "tilt" in str(caught.value)
    assert "1 mm off the nearest slice" in str(caught.value)
    assert str(images) not in str(caught.value)
    assert not list((tmp_path / "raw").iterdir())


@pytest.mark.parametrize("kept", [1500, 3000, -300])
def test_a_structure_set_that_is_cut_off_is_no_case_without_labels(kept, tree, tmp_path):
    series = write_ct(tmp_path / "images", ct_series(SHAPE))
    write_structure_set(tmp_path / "images" / "rt", LABELS, result_of(series, segments=SEGMENTS))
    whole = (tmp_path / "images" / "rt").read_bytes()
    (tmp_path / "images" / "rt").write_bytes(whole[:kept])
    with pytest.raises(InputError, match=r"1 problem,.*\n.*(cut off|cannot be read)"):
        create_dataset(tmp_path / "raw", 1, "Toy", REGIONS, ScanFolders(tmp_path / "images", tmp_path / "images"), GTV)


@pytest.mark.parametrize(
    ("rules", "setting"),
    [
        (RegionRules({"tumour": "gtv"}), "roi"),
        (RegionRules({"background": "body"}), "roi"),
        (RegionRules(precedence=("tumour",)), "precedence"),
        (RegionRules(precedence=("tumor", "liver")), "precedence"),
    ],
)
def test_rules_that_do_not_fit_the_labels_are_refused(rules, setting, tree, tmp_path):
    with pytest.raises(SetupError) as caught:
        create_dataset(tmp_path, 1, "Toy", REGIONS, ScanFolders(tree, tree), rules)
    assert caught.value.settings == (setting,)


def test_a_series_is_one_channel(tree, tmp_path):
    description = DatasetDescription(("CT", "PET"), {"background": 0, "tumor": 1})
    with pytest.raises(InputError, match="a DICOM series is one channel, and the data set has 2"):
        create_dataset(tmp_path, 1, "Toy", description, ScanFolders(tree, tree), GTV)


def test_the_command_makes_a_data_set(tree, tmp_path, capsys):
    words = f"dataset create -d 7 --name Toy --images {tree} --labels {tree} --label tumor=1 --nnUNet_raw {tmp_path}"
    assert main([*words.split(), "--roi", "tumor=GTV*", "--series", "Thorax 1.0*"]) == 0
    assert "2 cases" in capsys.readouterr().out
    content = json.loads((tmp_path / "Dataset007_Toy" / "dataset.json").read_text())
    assert (content["numTraining"], content["labels"]) == (2, {"background": 0, "tumor": 1})
    assert main([*words.replace("-d 7", "-d 8").split()]) != 0
    assert "--roi" in capsys.readouterr().err
    assert main([*words.replace("-d 7", "-d 8").split(), "--roi", "GTV"]) == 2


def test_physicians_contours_become_the_mask_that_was_made_of_them(shared_data, tmp_path):
    tree = shared_data / "sts_sarcoma_dicom"
    description = DatasetDescription(("CT",), {"background": 0, "tumor": 1})
    rules = RegionRules({"tumor": "GTV_Mass*"})
    dataset = create_dataset(tmp_path, 1, "Toy", description, ScanFolders(tree, tree), rules)
    (found,) = label_maps(dataset)
    expected = np.asarray(nibabel.load(shared_data / "sts_sarcoma" / "test" / "STS_042_gtv.nii.gz").dataobj).T
    assert expected.sum() == 11_175
    assert np.count_nonzero(found != expected) == 0
    assert verify_dataset(dataset, nnunet_check=False).problems == ()
