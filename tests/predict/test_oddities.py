"""Warnings of a case, from its files to its outcome."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.files.cases import find_cases
from ctseg.files.geometry import Geometry
from ctseg.predict.folder import segment_cases
from ctseg.predict.oddities import _sides
from ctseg.predict.options import BatchOptions
from ctseg.predict.segmenter import WindowSegmenter
from ctseg.presentation import LabelPresentation
from tests.support.threshold import ThresholdPredictor

RAS = np.diag([1.0, 2.0, 3.0, 1.0])


def predictor_of(*, ct: bool = True, training_volumes_ml=None) -> ThresholdPredictor:
    """A network that marks what is above 0, of a model that expects HU and knows its training set's volumes."""
    predictor = ThresholdPredictor()
    label = predictor.spec.labels[1].name
    (channel,) = predictor.spec.channels
    intensity = channel.intensity.model_copy(update={"mean": 40.0, "percentile_00_5": -170.0, "percentile_99_5": 900.0})
    channel = channel.model_copy(
        update={"normalization": "CTNormalization" if ct else channel.normalization, "intensity": intensity}
    )
    said = {label: LabelPresentation(training_volumes_ml=training_volumes_ml)} if training_volumes_ml else {}
    predictor.spec = predictor.spec.model_copy(update={"channels": (channel,), "presentation": said})
    return predictor


def warnings_of(folder: Path, voxels_xyz: np.ndarray, predictor: ThresholdPredictor, affine=RAS) -> tuple[str, ...]:
    (folder / "in").mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels_xyz.astype(np.int16), affine), folder / "in" / "a.nii.gz")
    cases = find_cases(folder / "in", channels=1)
    (outcome,) = segment_cases(cases, predictor, folder / "out", BatchOptions(overwrite=True)).cases
    assert outcome.status == "ok", outcome.error
    return outcome.warnings


def scan(*, low: int = -1000, high: int = 300) -> np.ndarray:
    """A tumour of 4 x 5 x 6 voxels of 6 mm3, away from every edge."""
    noise = np.random.default_rng(0).integers(-20, 20, (20, 18, 12))
    voxels = noise + low
    voxels[:, 4:] = noise[:, 4:] - 100
    voxels[6:10, 7:12, 3:9] = noise[6:10, 7:12, 3:9] + high
    return voxels


def test_a_scan_in_which_nothing_is_odd_has_no_warning(tmp_path):
    assert warnings_of(tmp_path, scan(), predictor_of(training_volumes_ml=(0.5, 0.7, 1.0))) == ()


def test_stored_numbers_without_their_intercept_are_told_where_a_model_expects_hu(tmp_path):
    shifted = scan() + 1024
    first, *_ = warnings_of(tmp_path, shifted, predictor_of())
    assert first.startswith(
        f"channel CT: values from {shifted.min()} to {shifted.max()}, none below 0, where HU have fat and air"
    )
    assert not [told for told in warnings_of(tmp_path, shifted, predictor_of(ct=False)) if "HU" in told]


def test_an_empty_label_map_is_told_once(tmp_path):
    told = warnings_of(tmp_path, scan(high=-60), predictor_of(training_volumes_ml=(0.5, 0.7, 1.0)))
    assert told == ("the label map is empty: nothing was found",)


@pytest.mark.parametrize(
    ("affine", "side"),
    [(RAS, "left"), (np.diag([-1.0, 2.0, 3.0, 1.0]), "right"), (RAS[[2, 0, 1, 3]], "posterior")],
)
def test_a_label_at_the_edge_is_told_with_the_side_of_the_patient(tmp_path, affine, side):
    voxels = scan()
    voxels[0, 5:9, 6] = 300  # on the first plane along x: 4 voxels of 2 x 3 mm
    predictor = predictor_of()
    label = predictor.spec.labels[1].name
    assert warnings_of(tmp_path, voxels, predictor, affine) == (
        f"cut by the edge of the scan: {label} ({side} 24 mm2)",
    )


def test_a_label_that_the_scan_cuts_is_told_last_and_in_the_log_in_short_and_as_no_warning(tmp_path, caplog):
    voxels = scan()
    voxels[0, 5:9, 6] = 300
    caplog.set_level(logging.INFO, "ctseg")
    predictor = predictor_of(training_volumes_ml=(0.1, 0.2, 0.31))
    label = predictor.spec.labels[1].name
    told = warnings_of(tmp_path, voxels, predictor)
    assert [text.partition(":")[0] for text in told] == [
        "volumes far outside those of the training set", "cut by the edge of the scan",
    ]  # fmt: skip
    said = [
        (record.levelname, record.getMessage()) for record in caplog.records if record.getMessage().startswith("a: ")
    ]
    assert said[:2] == [("WARNING", f"a: {told[0]}"), ("INFO", f"a: the edge of the scan cuts {label}")]
    assert not [text for _, text in said[2:] if "cut" in text]


def test_a_volume_far_outside_the_training_sets_is_told_with_its_range(tmp_path):
    predictor = predictor_of(training_volumes_ml=(0.1, 0.2, 0.31))
    label = predictor.spec.labels[1].name
    assert warnings_of(tmp_path, scan(), predictor) == (
        f"volumes far outside those of the training set: {label} 0.72 ml (0.1 to 0.31 ml)",
    )


def test_sides_of_an_oblique_grid_are_the_nearest():
    turned = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[-np.cos(turned), np.sin(turned)], [-np.sin(turned), -np.cos(turned)]]
    assert _sides(Geometry((3, 4, 5), affine)) == (
        ("inferior", "superior"), ("anterior", "posterior"), ("right", "left"),
    )  # fmt: skip


def test_a_segmenters_contract_says_what_is_expected_to_be_hu():
    assert list(WindowSegmenter(predictor_of()).contract.ct_intensities) == [0]
    assert WindowSegmenter(predictor_of(ct=False)).contract.ct_intensities == {}
