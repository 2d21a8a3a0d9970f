"""What an overview of a data set measures, what it finds to stick out, and its page."""

import csv
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from ctseg.cli.main import main
from ctseg.errors import InputError
from ctseg.numerics.warnings import why_no_hu
from ctseg.train.intensities import merged, spread_of
from ctseg.train.overview import LookedAt, look_at_dataset, overview_csv, write_overview
from ctseg.train.overview_document import DatasetOverview, Histogram
from ctseg.train.overview_page import overview_page
from ctseg.train.sticking_out import KINDS, outliers
from tests.support.planted_dataset import (
    CYST_VOXELS,
    LIVER_VOXELS,
    ODD,
    SCRIPT,
    SHAPE_ZYX,
    SPACING_ZYX,
    USUAL,
    PlantedCase,
    write_case,
    write_json,
    write_planted,
)

VOXEL_ML = 3.0 * 1.0 * 1.2 / 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset302_Planted"
    write_planted(folder)
    return folder


@pytest.fixture(scope="module")
def looked_at(folder: Path) -> LookedAt:
    return look_at_dataset(folder, workers=3)


def found(looked_at: LookedAt, case: str | None) -> list[tuple[str, str]]:
    return [(finding.kind, finding.message) for finding in looked_at.overview.findings if finding.case == case]


# what is measured


def test_a_case_is_measured_exactly(looked_at: LookedAt) -> None:
    case = next(case for case in looked_at.overview.cases if case.case == "c03")
    voxels, labels = USUAL[3].arrays()
    assert (case.shape, case.orientation, case.left_handed) == (SHAPE_ZYX, "LPS", False)
    assert case.spacing_mm == pytest.approx(SPACING_ZYX)
    assert case.labels["liver"].voxels == LIVER_VOXELS
    assert case.labels["liver"].volume_ml == pytest.approx(LIVER_VOXELS * VOXEL_ML)
    assert case.labels[SCRIPT].voxels == CYST_VOXELS
    for spread, values in ((case.channels["CT"].whole, voxels), (case.channels["CT"].foreground, voxels[labels > 0])):
        assert (spread.minimum, spread.maximum) == (values.min(), values.max())
        assert spread.mean == pytest.approx(values.mean())
        for name, share in (("percentile_00_5", 0.005), ("median", 0.5), ("percentile_99_5", 0.995)):
            assert getattr(spread, name) == np.quantile(values, share, method="inverted_cdf")
    histogram = case.channels["CT"].whole_histogram
    assert (histogram.low, histogram.high) == (-1024.0, 3072.0)
    assert histogram.counts == tuple(
        np.histogram(np.clip(voxels, -1024, 3071), len(histogram.counts), (-1024.0, 3072.0))[0]
    )


def test_a_label_in_a_picture_of_one_slice_is_cut_off_at_its_edges_alone(tmp_path: Path) -> None:
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "in": 1, "cut": 2}, "file_ending": ".nii.gz"}
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({**dataset, "numTraining": 1}))
    labels = np.zeros((1, 30, 40), np.uint8)
    labels[0, 10:14, 10:14] = 1
    labels[0, 20:24, 38:] = 2
    for path, values in (
        ("imagesTr/a_0000.nii.gz", labels.astype(np.int16) * 50 - 100),
        ("labelsTr/a.nii.gz", labels),
    ):
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), tmp_path / path)
    (case,) = look_at_dataset(tmp_path, workers=1).overview.cases
    assert {name: label.at_border_of for name, label in case.labels.items()} == {"in": (), "cut": ("right",)}


def test_percentiles_of_floats_are_within_a_bin_of_exact_ones() -> None:
    voxels = np.random.default_rng(3).gamma(2.0, 40.0, (5, 30, 40)).astype(np.float32)
    voxels[0, 0, :2] = (np.nan, np.inf)
    mask = voxels > 20
    spread, exact = spread_of(voxels, mask), voxels[mask & np.isfinite(voxels)]
    assert spread.counts.sum() == exact.size
    assert spread.at(0.995) == pytest.approx(
        np.quantile(exact, 0.995, method="inverted_cdf"), abs=float(exact.max() / 65536)
    )
    assert spread_of(voxels, np.zeros_like(mask)) is None


def test_histograms_of_different_ranges_are_put_together_by_their_overlap() -> None:
    one = Histogram(low=0, high=128, counts=(10, *[0] * 126, 3))
    other = Histogram(low=0, high=256, counts=(8, *[0] * 127))  # two units to a bin
    both = merged([one, other], 0, 128)
    assert both.counts[:3] == (14, 4, 0)
    assert both.counts[-1] == 3
    assert sum(merged([one], 50, 60).counts) == 13  # what lies outside is in the outermost bins


# what sticks out


def test_each_odd_case_sticks_out_by_what_was_planted_in_it(looked_at: LookedAt) -> None:
    kinds = {case.name: {kind for kind, _ in found(looked_at, case.name)} for case in ODD}
    assert kinds == {
        "big": {"volume"},
        "blank": {"empty"},
        "cut": {"border"},
        "hot": {"intensity"},
        "mirrored": {"orientation"},
        "no_cyst": {"missing_label"},
        "scaled": {"no_hu"},
        "thick": {"spacing", "size", "volume"},
        "twin": {"doubled"},
        "<img src=x onerror=alert(1)>": set(),
    }
    assert {kind for kind, _ in found(looked_at, "broken")} == {"problem"}
    assert all(found(looked_at, case.name) == [] for case in USUAL[1:])
    assert [kind for kind, _ in found(looked_at, "c00")] == ["doubled"]


def test_findings_say_the_numbers(looked_at: LookedAt) -> None:
    liver, twice = LIVER_VOXELS * VOXEL_ML, 2 * LIVER_VOXELS * VOXEL_ML
    assert found(looked_at, "big") == [
        ("volume", f"liver has {twice:.3g} ml, where the median case has {liver:.3g} ml")
    ]
    assert ("spacing", "9 mm between voxels along z, where the median case has 3") in found(looked_at, "thick")
    # x runs to the left: its first voxels are the right side
    assert found(looked_at, "cut") == [("border", "liver touches the right border of the scan: is it cut off there?")]
    assert found(looked_at, "mirrored") == [
        (
            "orientation",
            "x, y and z run to RPS, where 19 of 20 cases have LPS: its voxels lie mirrored against theirs",
        )
    ]
    assert found(looked_at, "no_cyst") == [("missing_label", f"{SCRIPT} is missing, which 18 of 20 cases have")]
    assert found(looked_at, "hot")[0][1].startswith(
        "CT in the labels: 0.5 %, median and 99.5 % are 372, 398 and 424 HU"
    )
    assert "as twin: folds" in found(looked_at, "c00")[0][1]


def test_what_matters_most_comes_first(looked_at: LookedAt) -> None:
    kinds = [finding.kind for finding in looked_at.overview.findings]
    assert kinds[0] == "problem"
    assert kinds == sorted(kinds, key=KINDS.index)


def test_a_broken_case_has_a_row_with_what_could_be_read(looked_at: LookedAt) -> None:
    case = next(case for case in looked_at.overview.cases if case.case == "broken")
    assert "broken" not in looked_at.pictures
    assert case.channels == {}
    assert case.labels["liver"].voxels == LIVER_VOXELS
    assert "broken_0000.nii.gz" in case.problems[0]
    assert len(looked_at.pictures) == len(USUAL) + len(ODD)


def test_outliers_are_those_by_the_modified_z_score() -> None:
    # median 14, deviations 4 3 2 1 0 1 2 3 26, their median 2: the spread is 2.9652
    values = dict(zip("abcdefghi", (10, 11, 12, 13, 14, 15, 16, 17, 40), strict=True))
    assert outliers(values, smallest=0.1) == (14.0, {"i": 40})
    assert outliers(values, smallest=26 / 3.5 + 0.001) == (14.0, {})
    assert outliers({**values, "i": 24}, smallest=0.1)[1] == {}  # 10 / 2.9652 is 3.37
    assert outliers({**values, "i": 25}, smallest=0.1)[1] == {"i": 25}  # 11 / 2.9652 is 3.71
    assert outliers({**values, "j": -30.0, "k": 14.0}, smallest=0.1)[1] == {"j": -30.0, "i": 40}
    assert outliers(dict.fromkeys("abcd", 1.0) | {"d": 99.0}, smallest=0.1)[1] == {}  # four are too few


def test_nearly_equal_volumes_do_not_stick_out() -> None:
    values = {**dict.fromkeys("abcdefg", 100.0), "low": 62.0, "high": 162.0, "far": 164.0}
    assert outliers(values, smallest=math.log(1.15), scale=math.log)[1] == {"far": 164.0}


def test_values_that_are_hardly_hu_are_told_as_before_a_scan_is_segmented(tmp_path: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    usual, labels = USUAL[3].arrays()
    affine = USUAL[3].affine()
    values = {
        "usual": usual,
        "shifted": usual + 1024 - min(0, int(usual.min()) + 1024),
        "eight_bits": np.linspace(0, 255, usual.size).reshape(usual.shape).astype(np.uint8),
        "one_value": np.full_like(usual, 7),
        **{f"shifted{more}": usual + 1024 + more - min(0, int(usual.min()) + 1024) for more in (1, 2)},
        "not_finite": np.where(labels > 0, np.nan, usual.astype(np.float32) + 5000),
    }
    for name, voxels in values.items():
        write_case(tmp_path, name, (voxels, labels), affine)
    write_json(tmp_path, {"background": 0, "liver": 1, "cyst": 2}, cases=len(values))
    overview = look_at_dataset(tmp_path, workers=1).overview
    told = {one.case: one.message for one in overview.findings if one.kind == "no_hu"}
    expected = {name: f"CT: {why_no_hu(values[name])}" for name in ("eight_bits", "one_value")}
    assert told == {**expected, None: f"3 of 7 cases, such as shifted: CT: {why_no_hu(values['shifted'])}"}
    assert "none below 0" in told[None]
    assert "a picture of 8 bits" in told["eight_bits"]
    assert "values from 7 to 7" in told["one_value"]


# data sets of other kinds


def test_channels_regions_an_ignore_label_and_other_file_endings(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset303_Kinds"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(5):
        voxels, labels = PlantedCase(f"k{number}", number).arrays()
        labels[9, 0:2, 0:3] = 3  # six voxels are left open
        for name, values in (
            (f"imagesTr/k{number}_0000.mha", voxels),
            (f"imagesTr/k{number}_0001.mha", (voxels * 3).astype(np.float32)),
            (f"labelsTr/k{number}.mha", labels),
        ):
            image = sitk.GetImageFromArray(values)
            image.SetSpacing(SPACING_ZYX[::-1])
            sitk.WriteImage(image, str(folder / name))
    write_json(
        folder, {"background": 0, "whole": [1, 2], "cyst": [2], "ignore": 3}, cases=5, regions_class_order=[1, 2],
        channel_names={"0": "CT", "1": "PET"}, file_ending=".mha",
    )  # fmt: skip
    overview = look_at_dataset(folder).overview
    case = overview.cases[2]
    assert {name: label.voxels for name, label in case.labels.items()} == {
        "whole": LIVER_VOXELS + CYST_VOXELS, "cyst": CYST_VOXELS, "ignore": 6,
    }  # fmt: skip
    voxels, labels = PlantedCase("k2", 2).arrays()
    voxels[9, 0:2, 0:3] = 0
    assert case.channels["CT"].foreground.maximum == voxels[labels > 0].max()  # the ignored voxels do not count
    assert case.channels["PET"].whole.minimum == pytest.approx(3 * voxels.min())
    assert overview.findings == ()
    assert "whole, ml" in overview_page(look_at_dataset(folder))


def test_a_label_map_on_another_grid_is_told_and_other_cases_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset304_Grids"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in USUAL[:2]:
        write_case(folder, case.name, case.arrays(), case.affine())
    image, labels = USUAL[2].arrays()
    write_case(folder, "short", (image, labels[:7]), USUAL[2].affine())
    (folder / "imagesTr" / "c01_0000.nii.gz").unlink()
    (folder / "labelsTr" / "lone.nii.gz").write_bytes(b"")
    write_json(folder, {"background": 0, "liver": 1, "cyst": 2}, cases=3)
    looked_at = look_at_dataset(folder)
    assert [case.case for case in looked_at.overview.cases] == ["c00", "short"]
    assert "image has shape (10, 20, 16) (z, y, x), the labels (7, 20, 16)" in found(looked_at, "short")[0][1]
    assert {message.split(":")[0] for _, message in found(looked_at, None)} == {"case c01", "case lone"}
    assert set(looked_at.pictures) == {"c00", "short"}


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset.json: cannot be read"):
        look_at_dataset(tmp_path)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    write_json(tmp_path, {"background": 0, "liver": 1}, cases=0)
    with pytest.raises(InputError, match="no cases"):
        look_at_dataset(tmp_path)


# what is written


class Elements(HTMLParser):
    """The names of all elements, and what is asked of a network."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_names_from_outside_are_text_in_the_page(looked_at: LookedAt) -> None:
    page = overview_page(looked_at)
    elements = Elements(page)
    assert elements.names.count("script") == 1  # the page's own
    assert elements.names.count("img") == len(USUAL) + len(ODD)
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert all(source.startswith(("#", "data:image/")) for source in elements.sources)
    assert "patient data" in page


def test_the_page_begins_with_what_sticks_out_and_has_a_row_for_every_case(looked_at: LookedAt) -> None:
    page = overview_page(looked_at)
    assert page.index("What sticks out") < page.index("Intensities") < page.index(">Cases<")
    rows = page.count('<tr id="case-')
    assert rows == len(looked_at.overview.cases) == len(USUAL) + len(ODD) + 1


def test_no_kind_of_finding_hides_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset307_Doubled"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(10):
        write_case(folder, f"d{number}", USUAL[0].arrays(), USUAL[0].affine())
    write_case(folder, "thick", ODD[7].arrays(), ODD[7].affine())
    write_json(folder, {"background": 0, "liver": 1, "cyst": 2}, cases=11)
    looked_at = look_at_dataset(folder)
    assert found(looked_at, "d3") == [
        (
            "doubled",
            "the same scan, voxel by voxel, as d0 and d1 and d2 and 6 more: folds may train on what they validate",
        )
    ]
    listed, _, rest = overview_page(looked_at).partition("<details>")
    assert listed.count("the same scan") == 8
    folded, _, after = rest.partition("</details>")
    assert folded.count("the same scan") == 2
    assert "9 mm between voxels" in after


def test_numbers_lie_beside_the_page(looked_at: LookedAt, tmp_path: Path) -> None:
    page = write_overview(looked_at, tmp_path / "new")
    assert page == tmp_path / "new" / "overview.html"
    assert DatasetOverview.model_validate_json((tmp_path / "new/overview.json").read_bytes()) == looked_at.overview
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new/overview.csv").read_text())))
    assert [row["case"] for row in rows] == [case.case for case in looked_at.overview.cases]
    row = next(row for row in rows if row["case"] == "thick")
    assert float(row["spacing_z_mm"]) == 9
    assert float(row["liver ml"]) == pytest.approx(LIVER_VOXELS * 9 * 1.2 / 1000)
    assert overview_csv(looked_at.overview).splitlines()[0].startswith("case,size_z,size_y,size_x,spacing_z_mm")


def test_the_command_takes_an_id_or_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    words = ["dataset", "overview", "-d", "302", "--nnUNet_raw", str(folder.parent)]
    assert main(words) == 2
    assert "nnUNet_preprocessed" in capsys.readouterr().err
    assert main([*words, "--nnUNet_preprocessed", str(tmp_path)]) == 1  # one case is broken
    assert (tmp_path / "Dataset302_Planted" / "overview.html").is_file()
    assert main(["dataset", "overview", "-d", str(folder), "-o", str(tmp_path / "elsewhere")]) == 1
    said = capsys.readouterr().out
    assert "[problem] broken: " in said
    assert "20 cases" in said
    assert json.loads((tmp_path / "elsewhere" / "overview.json").read_text())["dataset"] == "Dataset302_Planted"


def test_the_picture_shows_the_largest_section_as_radiologists_look(tmp_path: Path) -> None:
    import base64

    from PIL import Image

    folder = tmp_path / "Dataset305_Mark"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    # axes run to the right, front and up; a mark lies at the patient's left front, in the plane with the large label
    voxels, labels = np.full((6, 20, 30), -1000, np.int16), np.zeros((6, 20, 30), np.uint8)
    labels[4, 8:12, 12:18] = 1
    labels[1, 9:10, 12:14] = 1
    voxels[4, 15:20, 0:6] = 1000
    write_case(folder, "mark", (voxels, labels), np.diag([1.0, 2.0, 5.0, 1.0]))
    write_json(folder, {"background": 0, "liver": 1}, cases=1)
    uri = look_at_dataset(folder, picture_size=80).pictures["mark"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"), dtype=float)
    assert picture.shape == (80, 60)  # 40 mm by 30 mm
    assert picture[4:14, 50:58].min() > 200  # left front: on the right, on top
    assert picture[60:, :].max() < 60
    assert nibabel.load(folder / "imagesTr" / "mark_0000.nii.gz").shape == (30, 20, 6)
