"""Volumes of the training set's labels: those of the label maps, in the spec and outside its digest."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.deploy.export import ExportOptions, export_model
from ctseg.deploy.trained_model import LoadedModel, load_trained_model
from ctseg.deploy.training_volumes import training_labels_of, training_volumes_ml, with_training_volumes
from ctseg.nnunet.plans import spec_from_plans
from ctseg.presentation import LabelPresentation
from ctseg.stages import Stage, watched
from tests.support.nnunet_plans import make_dataset, make_plans

VOXEL_ML = 3.0 * 2.0 * 5.0 / 1000


@pytest.fixture
def model(trained_unet: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return load_trained_model(trained_unet, folds=(0,))


def write_labels(folder: Path, name: str, *counts: int, ending: str = ".nii.gz") -> None:
    """Write a label map that has ``counts`` voxels of 1, 2, …, along a turned grid of 3 x 2 x 5 mm."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(7 * 9 * 11, np.uint8)
    labels[: sum(counts)] = np.repeat(np.arange(1, len(counts) + 1), counts)
    affine = np.diag([-3.0, 2.0, 5.0, 1.0])[[2, 0, 1, 3]]
    nib.save(nib.Nifti1Image(labels.reshape(7, 9, 11), affine), folder / f"{name}{ending}")


def test_volumes_are_the_least_the_median_and_the_largest_of_all_cases(tmp_path, model, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / model.dataset_name / "labelsTr"
    for name, count in (("a", 40), ("b", 10), ("c", 300), ("d", 20)):
        write_labels(folder, name, count)
    (folder / ".hidden.nii.gz").write_bytes(b"")
    labels = training_labels_of(model)
    assert labels is not None
    assert [file.name[0] for file in labels.files] == ["a", "b", "c", "d"]
    spec = spec_from_plans(make_plans(), make_dataset(), "3d_fullres", name="m", mirror_axes=())
    assert training_volumes_ml(labels, spec) == {
        "tumor": pytest.approx((10 * VOXEL_ML, 30 * VOXEL_ML, 300 * VOXEL_ML), rel=1e-6)
    }


def test_regions_hold_their_parts_and_a_case_without_a_label_has_none_of_it(tmp_path, model, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / model.dataset_name / "labelsTr"
    write_labels(folder, "a", 100, 20)
    write_labels(folder, "b", 50)
    dataset = make_dataset({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    spec = spec_from_plans(make_plans(), dataset, "3d_fullres", name="m", mirror_axes=())
    labels = training_labels_of(model)
    assert labels is not None
    assert training_volumes_ml(labels, spec) == {
        "whole": pytest.approx((50 * VOXEL_ML, 85 * VOXEL_ML, 120 * VOXEL_ML)),
        "core": pytest.approx((0, 10 * VOXEL_ML, 20 * VOXEL_ML)),
    }


def test_copies_that_were_preprocessed_come_before_raw_ones_and_without_either_nothing_is_known(
    tmp_path, model, monkeypatch
):
    assert training_labels_of(model) is None
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert training_labels_of(model) is None
    folders = tmp_path / "raw" / model.dataset_name / "labelsTr", tmp_path / "preprocessed" / model.dataset_name
    write_labels(folders[0], "a", 10)
    assert (labels := training_labels_of(model)) is not None
    assert labels.folder == folders[0]
    write_labels(folders[1] / "gt_segmentations", "a", 10, ending=".nrrd.nii.gz")
    write_labels(folders[1] / "gt_segmentations", "b", 10, ending=".nii")
    assert (labels := training_labels_of(replace(model, dataset={"file_ending": ".nii"}))) is not None
    assert [file.name for file in labels.files] == ["b.nii"]


def test_a_label_map_that_cannot_be_read_is_left_out_and_told(tmp_path, model, monkeypatch, caplog):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / model.dataset_name / "labelsTr"
    write_labels(folder, "a", 10)
    (folder / "b.nii.gz").write_bytes(b"no gzip")
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), -3, np.int16), np.eye(4)), folder / "c.nii.gz")
    spec = spec_from_plans(make_plans(), make_dataset(), "3d_fullres", name="m", mirror_axes=())
    assert (labels := training_labels_of(model)) is not None
    assert training_volumes_ml(labels, spec)["tumor"] == pytest.approx((10 * VOXEL_ML,) * 3)
    assert "b.nii.gz is left out of the training set's volumes" in caplog.text
    assert (
        "c.nii.gz is left out of the training set's volumes: expected labels, found values from -3 to -3" in caplog.text
    )


def test_reading_the_label_maps_is_a_stage_that_counts_them_those_that_are_left_out_too(tmp_path, model, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / model.dataset_name / "labelsTr"
    for name in "ab":
        write_labels(folder, name, 10)
    (folder / "c.nii.gz").write_bytes(b"no gzip")
    seen: list[tuple[str, int, int | None, str]] = []

    class Watcher:
        def began(self, stage: Stage) -> None:
            seen.append((stage.what, stage.done, stage.total, stage.unit))

        def advanced(self, stage: Stage) -> None:
            seen.append(("done", stage.done, stage.total, stage.unit))

        def ended(self, stage: Stage) -> None:
            seen.append(("ended", stage.done, stage.total, stage.unit))

    spec = spec_from_plans(make_plans(), make_dataset(), "3d_fullres", name="m", mirror_axes=())
    labels = training_labels_of(model)
    assert labels is not None
    with watched(Watcher()):
        training_volumes_ml(labels, spec)
    assert seen == [
        ("volumes of the training set's labels", 0, 3, "label maps"),
        *(("done", count, 3, "label maps") for count in (1, 2, 3)),
        ("ended", 3, 3, "label maps"),
    ]


def test_what_a_person_says_of_volumes_goes_first():
    said = {
        "a": LabelPresentation(display_name="A"),
        "b": LabelPresentation(training_volumes_ml=(1, 2, 3)),
    }
    found = with_training_volumes(said, dict.fromkeys("abc", (4.0, 5.0, 6.0)))
    assert {name: (item.display_name, item.training_volumes_ml) for name, item in found.items()} == {
        "a": ("A", (4, 5, 6)), "b": ("", (1, 2, 3)), "c": ("", (4, 5, 6)),
    }  # fmt: skip


def test_an_export_beside_its_data_set_knows_the_volumes_and_its_digest_does_not(tmp_path, model, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / model.dataset_name / "labelsTr"
    write_labels(folder, "a", 200)
    lines: list[str] = []
    options = ExportOptions(accept_unproven=True, codes={"tumor": LabelPresentation(display_name="Tumour")})
    spec = export_model(model, tmp_path / "bundle", options, report=lines.append).spec
    said = spec.presentation["tumor"]
    assert (said.display_name, said.training_volumes_ml) == ("Tumour", pytest.approx((200 * VOXEL_ML,) * 3))
    assert spec.digest == spec.model_copy(update={"presentation": {}}).digest
    assert f"  volumes of the training set's labels: 1 label maps in {folder}" in lines
