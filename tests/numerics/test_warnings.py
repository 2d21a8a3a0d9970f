"""What is odd about a scan: each rule on numbers that are, and on those that nearly are."""

import numpy as np
import pytest

from ctseg.numerics.warnings import CutLabel, TrainingIntensities, UnusualVolume, cut_labels, unusual_volumes, why_no_hu

TRAINING = TrainingIntensities(mean=40.0, low=-174.0, high=1300.0)
SHIFTED = "is the intercept of the scanner, often -1024, missing or added twice?"


def body_in_air(*, lung_share: float = 0.1) -> np.ndarray:
    """A noisy body of fat, muscle and a little bone in air, as HU; 24 x 40 x 32."""
    noise = np.random.default_rng(3).normal(0, 15, (24, 40, 32))
    hu = np.full(noise.shape, -1000.0)
    hu[:, 5:35, 4:28] = -100
    hu[:, 8:32, 7:25] = 50
    hu[:, 10 : 10 + round(22 * lung_share), 9:20] = -850
    hu[:, 27:30, 14:17] = 1100
    return np.round(hu + noise).clip(-1024, 3071).astype(np.int16)


def soft_tissue() -> np.ndarray:
    """A box inside an organ: no air, no fat, no bone, some noise below 0."""
    return np.round(np.random.default_rng(4).normal(60, 25, (20, 30, 25))).astype(np.int16)


def padded() -> np.ndarray:
    hu = body_in_air()
    hu[:, :9] = -3024
    return hu


def almost_all_padding() -> np.ndarray:
    """A body of 3 % of the voxels: everything else is one number, lower than air."""
    hu = np.full((24, 40, 32), -2000, np.int16)
    hu[:, 17:23, 13:19] = body_in_air()[:, 20:26, 10:16]
    return hu


@pytest.mark.parametrize(
    "hu", [body_in_air(), body_in_air(lung_share=0.9), soft_tissue(), padded(), almost_all_padding()]
)
def test_hu_are_hu_with_lungs_without_air_and_with_padding(hu):
    assert why_no_hu(hu, TRAINING) == ""
    assert why_no_hu(hu.astype(np.float32), TRAINING) == ""


@pytest.mark.parametrize(
    ("voxels", "why"),
    [
        ((body_in_air() + 1024.0) / 4095, "too narrow for HU: was the scan normalised?"),
        ((body_in_air() - 40) / 178, "too narrow for HU: was the scan normalised?"),
        (
            ((body_in_air() + 1024) / 8).clip(0, 255).astype(np.uint8),
            "values from 0 to 255: a picture of 8 bits, no HU",
        ),
        (
            ((body_in_air() + 1024) / 8).clip(0, 256).astype(np.uint16),
            f"values from 0 to 256, none below 0, where HU have fat and air: {SHIFTED}",
        ),
        (body_in_air() + 1024, f"none below 0, where HU have fat and air: {SHIFTED}"),
        ((body_in_air() + 1024).astype(np.uint16), f"none below 0, where HU have fat and air: {SHIFTED}"),
        (
            np.where(padded() == -3024, -2000, body_in_air() + 1024),
            f"more above 700 than bone and metal have: {SHIFTED}",
        ),
        (body_in_air() - 1024, f"most below -200, less than air in a body has: {SHIFTED}"),
        (padded() - 1024, f"most below -200, less than air in a body has: {SHIFTED}"),
        (
            body_in_air().clip(-160, 240),
            "cut off above 240, while the training set goes from -174 to 1300: was a window",
        ),
        (body_in_air().clip(-100, 3000), "cut off below -100, while the training set goes from -174 to 1300"),
    ],
)
def test_what_is_no_hu_is_told_with_what_it_looks_like(voxels, why):
    assert why in why_no_hu(voxels, TRAINING)


@pytest.mark.parametrize(("low", "high"), [(-1000, 1500), (-174, 1300)])
def test_a_window_no_narrower_than_the_training_sets_changes_nothing(low, high):
    assert why_no_hu(body_in_air().clip(low, high), TRAINING) == ""


def test_one_negative_voxel_that_the_sample_misses_counts():
    shifted = np.full((120, 130, 110), 1000, np.int16)
    shifted[::4] = 40
    shifted[1, 1, 1] = -1
    assert "none below 0" not in why_no_hu(shifted, TRAINING)
    shifted[1, 1, 1] = 0
    assert "values from 0 to 1000, none below 0" in why_no_hu(shifted, TRAINING)


@pytest.mark.parametrize(
    "training",
    [TrainingIntensities(0.4, 0.0, 1.0), TrainingIntensities(1060.0, 800.0, 2200.0)],
)
def test_a_model_that_was_not_trained_on_hu_expects_none(training):
    assert why_no_hu(body_in_air() + 1024, training) == ""


def test_numbers_at_both_ends_of_their_type_do_not_overflow():
    voxels = body_in_air()
    voxels[0, 0, 0], voxels[0, 0, 1] = -32768, 32767
    assert why_no_hu(voxels, TRAINING) == ""


def test_labels_at_the_edge_have_their_area_on_each_side():
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 1:3, 1:4] = 1  # 6 voxels of 2 x 1 mm
    labels[1:3, 4, 5] = 3  # 2 voxels on the last row, 3 x 1 mm, and on the last column, 3 x 2 mm
    labels[2, 2, 2] = 2  # inside
    named = {"one": (1,), "two": (2,), "three": (3,), "two and three": (2, 3), "none": (4,)}
    three = CutLabel(((0, 0), (0, 6), (0, 12)))
    assert cut_labels(labels, named, (3.0, 2.0, 1.0)) == {
        "three": three,
        "two and three": three,
        "one": CutLabel(((12, 0), (0, 0), (0, 0))),
    }
    assert next(iter(cut_labels(labels, named, (3.0, 2.0, 1.0)))) == "three"  # 18 mm2, before the 12 of one
    assert three.area_mm2 == 18


def test_an_axis_of_one_plane_cuts_nothing():
    labels = np.ones((1, 5, 6), np.uint8)
    (cut,) = cut_labels(labels, {"one": (1,)}, (3.0, 2.0, 1.0)).values()
    assert cut.ends_mm2 == ((0, 0), (18, 18), (30, 30))


def test_values_without_a_name_are_no_labels():
    assert cut_labels(np.full((3, 3, 3), 9, np.uint8), {"one": (1,)}, (1.0, 1.0, 1.0)) == {}


@pytest.mark.parametrize("size", [64, 65])
def test_a_label_at_the_circle_beyond_which_slices_are_padded_is_cut(size):
    along = np.arange(size) - (size - 1) / 2
    from_centre = np.hypot(along[:, None], along)
    hu = np.random.default_rng(5).normal(40, 15, (7, size, size)).astype(np.float32)
    hu[:, from_centre >= size / 2 + 0.5] = -2000
    labels = np.zeros(hu.shape, np.uint8)
    at_45_degrees = (along[:, None] > 10) & (along > 10) & (from_centre < size / 2)
    labels[3] = np.where(at_45_degrees, 1, 0)
    labels[2, size // 2, size // 2] = 2
    named = {"arm": (1,), "heart": (2,)}
    (name,), (cut,) = zip(*cut_labels(labels, named, (3.0, 2.0, 2.0), voxels=hu).items(), strict=True)
    radius = size / 2 - 1.5  # in the middle of the ring of pixels
    angle = np.arccos(10 / radius) - np.arcsin(10 / radius)
    assert name == "arm"
    assert cut.circle_mm2 == pytest.approx(angle * radius * 2.0 * 3.0, rel=0.1)  # the arc, in mm, by the slice
    assert cut.ends_mm2 == ((0, 0), (0, 0), (0, 0))

    hu[5, 0, 0] = 7.0  # a corner may have a mark
    assert cut_labels(labels, named, (3.0, 2.0, 2.0), voxels=hu) != {}
    hu[4, from_centre >= size / 2 + 0.5] = 7.0  # but not every slice is padded
    assert cut_labels(labels, named, (3.0, 2.0, 2.0), voxels=hu) == {}
    assert cut_labels(labels, named, (3.0, 2.0, 2.0), voxels=np.full_like(hu, -1024)) == {}


def test_volumes_are_far_outside_below_half_the_least_and_above_twice_the_largest():
    training = dict.fromkeys(("less", "half", "twice", "more"), (10.0, 40.0, 100.0)) | {"rare": (0.0, 1.0, 5.0)}
    found = {"less": 4.9, "half": 5.0, "twice": 200.0, "more": 201.0, "rare": 0.0, "not known": 1e6}
    assert unusual_volumes(found, training) == {
        "less": UnusualVolume(4.9, 10.0, 100.0),
        "more": UnusualVolume(201.0, 10.0, 100.0),
    }
