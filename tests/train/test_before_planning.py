"""What `ctseg plan` looks at before nnU-Net begins, and which folds it puts in place."""

import errno
import json
import logging
from pathlib import Path

import pytest

from ctseg.errors import InputError, OutputError, SetupError, TrainingError
from ctseg.stages import Stage, watched
from ctseg.train.before_planning import require_sound, settle_folds
from ctseg.train.groups import grouped_splits
from ctseg.train.nnunet_output import bars_as_stages, output_into
from ctseg.train.paths import NnunetPaths, dataset_name
from ctseg.train.planning import LOG_FILE, Planning, find_planner
from tests.support.small_datasets import SOUND, image, raw_dataset, write
from tests.support.tiny_trainings import PlannedNnunet


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    for name in ("ctseg", "ctseg.train"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.INFO, "ctseg")
    return caplog


def test_names_headers_and_labels_are_looked_at_before_every_plan(tmp_path: Path) -> None:
    raw = raw_dataset(tmp_path, number="", content={**SOUND, "labels": {"0": "background", "1": "tumor"}})
    with pytest.raises(InputError) as caught:
        require_sound(raw, Planning())
    assert "case0.nii.gz to case0_0000.nii.gz" in str(caught.value)
    assert 'write "labels": {"background": 0, "tumor": 1}' in str(caught.value)
    assert caught.value.settings == ("check",)
    require_sound(raw, Planning(check=False))


def test_voxels_of_images_are_looked_at_only_where_that_is_asked_for(tmp_path: Path) -> None:
    raw = raw_dataset(tmp_path)
    holed = image(0).astype("float32")
    holed[0, 0, 0] = float("nan")
    write(raw / "imagesTr" / "case0_0000.nii.gz", holed)
    require_sound(raw, Planning())
    with pytest.raises(InputError, match=r"1 voxels of case0_0000.nii.gz are NaN"):
        require_sound(raw, Planning(verify=True))
    write(raw / "imagesTr" / "case1_0000.nii.gz", image(1)[1:])
    with pytest.raises(InputError, match=r"image has shape \(4, 6, 7\) \(z, y, x\), the labels \(5, 6, 7\)"):
        require_sound(raw, Planning())


def test_fewer_than_five_cases_are_told_before_preprocessing_with_what_to_do(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    raw = raw_dataset(tmp_path, cases=3)
    settle_folds(raw, tmp_path / "preprocessed", Planning(), ())
    assert "3 cases are fewer than the five folds" in told.text
    assert "train on all of them (the fold `full`), or write folds of your own into splits_final.json" in told.text
    told.clear()
    own = [{"train": ["case0", "case1"], "val": ["case2"]}]
    (raw / "splits_final.json").write_text(json.dumps(own))
    settle_folds(raw, tmp_path / "preprocessed", Planning(), ())
    assert told.text == ""


def test_folds_that_keep_groups_together_are_put_where_nnunet_takes_them_from(tmp_path: Path) -> None:
    raw, preprocessed = raw_dataset(tmp_path, cases=6), tmp_path / "preprocessed"
    rule = r"case([1-5]|0)"
    settle_folds(raw, preprocessed, Planning(group_by=rule), ())
    written = json.loads((preprocessed / "splits_final.json").read_text())
    assert written == grouped_splits({f"case{i}": str(i) for i in range(6)})
    settle_folds(raw, preprocessed, Planning(group_by=rule), ["model"])  # the same again
    with pytest.raises(InputError, match="1 group is fewer than the five folds"):
        settle_folds(raw, preprocessed, Planning(group_by="case"), ())


def test_folds_that_a_training_used_are_not_replaced_by_accident(tmp_path: Path) -> None:
    raw, preprocessed = raw_dataset(tmp_path, cases=6), tmp_path / "preprocessed"
    preprocessed.mkdir()
    file = preprocessed / "splits_final.json"
    own = [{"train": ["case0", "case1"], "val": ["case2"]}]
    file.write_text(json.dumps(own))
    with pytest.raises(
        TrainingError, match="holds other folds, and model trained on them: nothing was changed"
    ) as caught:
        settle_folds(raw, preprocessed, Planning(group_by=".*"), ["model"])
    assert caught.value.settings == ("overwrite",)
    assert json.loads(file.read_text()) == own
    settle_folds(raw, preprocessed, Planning(group_by=".*", overwrite=True), ["model"])
    assert len(json.loads(file.read_text())) == 5


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"train": ["case0", "gone"], "val": ["case1"]}], "fold 0 has cases that are not in the data set: gone"),
        ([{"train": ["case0"], "val": ["other"]}], "fold 0 has cases that are not in the data set: other"),
        ([{"train": ["case0"], "val": ["case0"]}], "fold 0 trains and validates on case0"),
        ({"train": []}, "expected a list of folds"),
    ],
)
def test_folds_that_do_not_fit_the_cases_are_told_before_any_work(tmp_path: Path, splits: object, message: str) -> None:
    raw = raw_dataset(tmp_path)
    (raw / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=message):
        settle_folds(raw, tmp_path / "preprocessed", Planning(), ())


def test_what_nnunet_prints_is_in_a_log_file_beside_the_plans(planned: PlannedNnunet) -> None:
    said = (planned.tiny.root / "preprocessed" / planned.tiny.dataset / LOG_FILE).read_text()
    assert "3D fullres U-Net configuration" in said
    assert "Using <class" in said


def test_output_goes_into_a_file_and_an_error_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "log.txt"

    def speaking(error: Exception) -> None:
        with output_into(log):
            print("{'a dict': 1}")
            raise error

    with pytest.raises(TrainingError) as caught:
        speaking(IndexError("list index\nout of range"))
    assert str(caught.value).startswith("nnU-Net stopped with IndexError: list index out of range: what it said, and")
    assert f"stands in {log}" in str(caught.value)
    assert caught.value.settings == ("verify",)
    assert log.read_text().startswith("{'a dict': 1}\nTraceback")
    assert "raise error" in log.read_text()
    with pytest.raises(OutputError, match=r"big\.npy: no space left \(OSError: .*: make room"):
        speaking(OSError(errno.ENOSPC, "No space left on device", "big.npy"))
    with pytest.raises(InputError, match=r"^ours$"):
        speaking(InputError("ours"))
    assert capsys.readouterr().out == ""


def test_bars_of_nnunet_are_stages_with_a_count() -> None:
    class Module:
        tqdm = "tqdm's own"

    class Watching:
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, int | None]] = []

        def began(self, stage: Stage) -> None:
            self.seen.append((stage.what, stage.done, stage.total))

        advanced = ended = began

    watching = Watching()
    with (
        watched(watching),
        bars_as_stages(Module),
        Module.tqdm(desc="Preprocessing cases", total=2, disable=True) as bar,  # type: ignore[operator]
    ):
        bar.update()
    assert watching.seen == [("Preprocessing cases", done, 2) for done in (0, 1, 1)]
    assert Module.tqdm == "tqdm's own"


def test_a_planner_and_a_data_set_with_a_slip_are_told_what_may_be_meant(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"did you mean nnUNetPlannerResEncL\?"):
        find_planner("nnUNetPlanerResEncL")
    raw_dataset(tmp_path, "Dataset010_Lungs", cases=0)
    with pytest.raises(SetupError, match=r"\(found: Dataset010_Lungs\); did you mean Dataset010_Lungs\?"):
        dataset_name(NnunetPaths(raw=tmp_path), "Dataset010_Lung")
    with pytest.raises(SetupError, match=r"\(found: Dataset010_Lungs\): `ctseg dataset create` makes one"):
        dataset_name(NnunetPaths(raw=tmp_path), "11")
