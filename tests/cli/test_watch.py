"""``ctseg watch``: what is wrong is told before any work, and the exit status says what came."""

from pathlib import Path

import pytest

from ctseg.cli.main import main as ctseg
from tests.support.canned_pacs import Said, canned_pacs
from tests.support.live_triton import free_port

MODELS = Path(__file__).parents[2] / "model_repository"


def watch(out: Path, url: str, *words: object) -> int:
    command = ["watch", "--dicomweb", url, "-o", out, "-m", "sarcoma", "--repository", MODELS, "--once", *words]
    return ctseg(list(map(str, command)))


def test_a_pacs_that_has_nothing_is_done_without_a_server(tmp_path, capsys):
    with canned_pacs(lambda asked: Said(body=b"[]")) as (url, asked):
        assert watch(tmp_path / "out", url, "--study_date", "20260105-") == 0
    assert capsys.readouterr().out == (
        "0 stored, 0 left out, 0 refused, 0 failed, no CT series of these dates fits the rules\n"
    )
    assert "StudyDate=20260105-" in asked[0].path
    assert "Modality=CT" in asked[0].path


@pytest.mark.parametrize(
    ("said", "told"),
    [(Said(404), "HTTP 404: it is not there"), (Said(body=b"<html>"), "no JSON"), (Said(body=b"{}"), "no list")],
)
def test_an_address_that_is_no_dicomweb_exits_2(tmp_path, capsys, said, told):
    with canned_pacs(lambda asked: said) as (url, _):
        assert watch(tmp_path / "out", url) == 2
    errors = capsys.readouterr().err
    assert f"{told}: expected the root of a DICOMweb" in errors
    assert "(see --dicomweb)" in errors


def test_a_pacs_that_is_away_exits_3(tmp_path, capsys):
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    assert watch(tmp_path / "out", url, "--pacs_patience_s", "0.1") == 3
    assert "PacsAwayError: 127.0.0.1:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dicomweb", "https://jane:secret@pacs/dicom-web"], "--pacs_credentials"),
        (["--output_format", "nifti"], "nothing would be stored: ask for a DICOM format (see --output_format)"),
        (["--study_date", "2026"], "expected a date YYYYMMDD"),
        (["--study_days", "0"], "expected 1 to 36500 days"),
        (["--pacs_client_key", "missing.pem"], "only one was given (see --pacs_client_certificate, --pacs_client_key)"),
        (["--pacs_credentials_env", "CTSEG_NOT_SET"], "not set, or empty (see --pacs_credentials_env)"),
    ],
)
def test_wrong_setup_is_told_in_one_line_and_exits_2(tmp_path, capsys, words, told):
    with canned_pacs(lambda asked: Said(body=b"[]")) as (url, _):
        status = watch(tmp_path / "out", url, *words)
    errors = capsys.readouterr().err
    assert told in errors
    assert "secret" not in errors
    assert status == 2
