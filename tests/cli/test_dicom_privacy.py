"""A patient's name in folders, files' names and tags, also where it makes them malformed, is told to nobody."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ctseg import ServerOptions, embedded_server
from ctseg.cli.main import main as ctseg
from ctseg.predict.outcomes import OutcomeStore
from ctseg.predict.report import Report
from ctseg.serving.publish import EntryDraft, publish
from tests.support.dicom_series import ct_series, other_object, set_raw, write_series
from tests.support.recording_proxy import recording
from tests.support.toy_models import WEIGHTS, save_toy_network, toy_spec

SECRET = "Zyxomma"
"""A surname that stands in no program."""
NAME = f"{SECRET}^Anna"
TEXTS = ("StudyID", "AccessionNumber", "SeriesDescription", "StudyDescription", "ProtocolName", "ConvolutionKernel")
MALFORMED = (
    ("SeriesNumber", "IS"), ("SliceThickness", "DS"), ("PatientAge", "AS"), ("PatientBirthDate", "DA"),
    ("SeriesTime", "TM"), ("KVP", "DS"), ("InstanceNumber", "IS"), ("SpecificCharacterSet", "CS"),
    ("FrameOfReferenceUID", "UI"), ("WindowCenter", "DS"), ("SeriesInstanceUID", "UI"),
)  # fmt: skip
SHAPE = (6, 10, 14)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series that are read, one that is refused, objects that are left out, files that are none, all with the name."""
    root = tmp_path_factory.mktemp("scans") / f"{SECRET}, Anna"
    names = [f"{NAME} {index}" for index in range(SHAPE[0])]
    good = ct_series(SHAPE, patient_name=NAME, PatientID=NAME, **dict.fromkeys(TEXTS, NAME))  # type: ignore[arg-type]
    write_series(root / SECRET, good.datasets, names=names)
    odd = ct_series(SHAPE, series=4, patient_name=NAME).datasets
    refused = ct_series(SHAPE, series=5, patient_name=NAME).datasets
    for dataset in odd:
        for keyword, vr in MALFORMED:
            set_raw(dataset, keyword, vr, NAME.ljust(16).encode())
    for dataset in refused:
        set_raw(dataset, "PixelSpacing", "DS", f"{SECRET}\\1 ".ljust(16).encode())
    write_series(root / f"{SECRET} 2", odd, names=names)
    write_series(root / f"{SECRET} 3", refused, names=names)
    other = other_object(good.datasets[0], f"1.2.{SECRET}", SECRET[:16])
    write_series(root, [other], names=[f"{SECRET}.dcm"])
    (root / f"{SECRET} cut off").write_bytes((root / SECRET / names[0]).read_bytes()[:400])
    (root / f"{SECRET}.txt").write_text(NAME)
    (root / f"notes.{SECRET}").write_text(NAME)
    (root / f"{SECRET} loop").symlink_to(root)
    return root


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("models") / "models"
    channels = toy_spec().channels[:1]
    network = save_toy_network(models.parent / "toy.onnx", weights=np.ascontiguousarray(WEIGHTS[:, :1]))
    draft = EntryDraft(spec=toy_spec(channels=channels), backend="python", model_file=network, whole_scans=True)
    publish(models, draft, 1)
    with embedded_server(models, options=ServerOptions(is_private=False)) as server:
        yield server.url


def said_by(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "always", "-m", "ctseg", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def assert_is_silent(text: str | bytes, where: object) -> None:
    words = text.encode() if isinstance(text, str) else text
    found = words.lower().find(SECRET.lower().encode())
    assert found < 0, f"{where}: …{words[max(0, found - 200) : found + 100]!r}…"


@pytest.mark.live
@pytest.mark.parametrize("where", ["client", pytest.param("server", marks=pytest.mark.full)])
def test_no_name_leaves_the_scans(
    scans: Path, url: str, tmp_path: Path, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with recording(url) as wire:
        done = said_by(
            "predict", "-i", scans, "-o", out, "-m", "toy", "--url", wire.url, "--where", where, "--verbose",
            "--output_format", "nifti", "dicom_seg", "dicom_rtstruct", "dicom_sr",
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = Report.model_validate_json((out / "report.json").read_bytes())
    assert sorted(case.status for case in report.cases) == ["failed", "ok", "ok"], done.stderr
    assert sum(map(len, wire.sent)) > 2 * np.prod(SHAPE), "the scans went through"
    assert "passed over" in done.stderr
    assert len(list(out.glob("*.dcm"))) == 3
    for part in (done.stdout, done.stderr, *map(bytes, wire.sent)):
        assert_is_silent(part, "said or sent")
    written = [Path(folder) / name for folder, _, names in os.walk(out) for name in names]
    assert len(list(OutcomeStore(out).all())) == 3
    for path in written:
        assert_is_silent(str(path), "a file's name")
        if not path.name.endswith(".dcm"):  # which say of whom they are
            assert_is_silent(path.read_bytes(), path)
    capfd.readouterr()
    assert ctseg(["report", "-o", str(out), "-i", str(scans), "--verbose"]) == 1
    assert_is_silent("".join(capfd.readouterr()), "the review")


def test_names_stand_in_a_list_that_a_person_asks_for_and_in_no_warning(scans: Path) -> None:
    done = said_by("dicom", "list", scans, "--verbose")
    assert NAME in done.stdout
    assert_is_silent(done.stderr, "warnings")
