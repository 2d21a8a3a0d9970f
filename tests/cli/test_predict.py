"""The command line: exit codes, messages, and what is not loaded."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from ctseg.cli.main import main as ctseg
from ctseg.errors import OutputError
from ctseg.predict.contract import contract_of
from ctseg.predict.model_notes import write_model_note
from ctseg.predict.report import Report
from tests.support.toy_models import toy_spec

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
MODEL = "sarcoma"


@pytest.fixture
def remembered(tmp_path: Path) -> Path:
    (tmp_path / "out" / ".ctseg").mkdir(parents=True)
    return tmp_path / "out"


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['ctseg', *{arguments!r}]\n"
        "try:\n    runpy.run_module('ctseg', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'nnunetv2', 'monai', 'onnx', 'onnxruntime', 'numba', 'scipy', 'tritonclient'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: ctseg" in done.stdout


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--repository", "nowhere"], "no model repository at nowhere"),
        (["--url", "localhost:1", "--repository", str(REPOSITORY)], "give one of the two"),
        (["--url", "localhost:1", "--header_env", "authorization=NO_SUCH_VARIABLE"], "a variable that is set"),
        (["--url", "localhost:1", "--spec", "nowhere.json"], "nowhere.json"),
        (["--url", "http://localhost:1"], "localhost:1"),
        (["--url", "localhost:1", "--tls_root_certificates", "nowhere.pem"], "nowhere.pem"),
    ],
)
def test_wrong_setup_exits_2_and_says_what_to_do(tmp_path, capsys, extra, told):
    (tmp_path / "scan.nii.gz").touch()
    assert ctseg(words("predict", "-i", tmp_path, "-o", tmp_path / "out", "-m", "m", *extra)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["-num_parts", "2", "-part_id", "2"], "there is no part 2 of 2: .*see --num_parts, --part_id"),
        (["-num_parts", "0"], "there is no part 0 of 0"),
        (["--num-parts", "2", "--part-id", "-1"], "there is no part -1 of 2"),
        (["-part_id", "1"], "there is no part 1 of 1"),
        (["--parts_from", "slurm"], "SLURM_ARRAY_TASK_ID, which is not set"),
        (["--parts_from", "kubernetes"], "give the Job's number of completions .see --num_parts"),
        (["--parts_from", "kubernetes", "-num_parts", "3"], "JOB_COMPLETION_INDEX, which is not set"),
        (["--parts_from", "slurm", "-part_id", "1"], "give one of the two"),
    ],
)
def test_a_part_that_cannot_be_exits_2_before_any_work(tmp_path, capsys, monkeypatch, extra, told):
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert (
        ctseg(words("predict", "-i", tmp_path, "-o", tmp_path / "out", "-m", "m", "--url", "localhost:1", *extra)) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--spec", "--tls_root_certificates"])
def test_no_pipe_in_the_place_of_a_document_is_waited_for(tmp_path, capsys, flag):
    (tmp_path / "scan.nii.gz").touch()
    os.mkfifo(tmp_path / "pipe")
    arguments = words("predict", "-i", tmp_path, "-o", tmp_path / "out", "-m", "m", "--url", "localhost:1")
    assert ctseg([*arguments, flag, str(tmp_path / "pipe")]) == 2
    assert "is a named pipe, not a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "extra",
    [
        *(["-step_size", value] for value in ("0", "1.5", "1e-4", "nan", "x")),
        *(["--memory_gb", value] for value in ("1e300", "nan", "inf", "0", "-1")),
        *(["--timeout_s", value] for value in ("1e300", "nan", "inf", "0", "-1")),
        *(["--case_timeout_s", value] for value in ("1e300", "nan", "0", "-1")),
        *(["--max_in_flight", value] for value in ("0", "-3", "x")),
        *(["--model_version", value] for value in ("0", "-1", "x")),
        *(["-num_parts", value] for value in ("0", "-1")),
        *([f"-m={name}"] for name in ("", "../x", "a/b", "a b", ".x", "-x", "é", "a\nb", "x" * 200)),
        ["--url", "gpu1:8001,gpu2:8001"],
        ["--repository", __file__],
        ["-o", __file__],
        ["-o", f"{__file__}/below"],
        ["-i", "nowhere"],
        ["--tile", "1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_in_one_line_before_any_work_and_exits_2(tmp_path, capsys, monkeypatch, extra):
    monkeypatch.setattr("ctseg.runs.model.embedded_server", lambda *_: pytest.fail("a server was started"))
    monkeypatch.setattr("ctseg.triton.predictor.connect_server", lambda *_: pytest.fail("a server was asked"))
    try:
        status = ctseg(words("predict", "-i", tmp_path, "-o", tmp_path / "out", "-m", "m", *_with_a_server(extra)))
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def _with_a_server(extra):
    return extra if {"--url", "--repository"} & set(extra) else [*extra, "--url", "127.0.0.1:1"]


def test_no_server_there_is_told_as_unavailable(tmp_path, ct_piece, capsys):
    arguments = words("predict", "-i", ct_piece, "-o", tmp_path, "-m", "m", "--url", "127.0.0.1:9", "--timeout_s", 1)
    assert ctseg(arguments) == 2
    told = capsys.readouterr().err
    assert "ServerUnavailableError" in told
    assert "127.0.0.1:9" in told


def test_no_server_there_is_worth_trying_again_where_one_has_answered_before(tmp_path, ct_piece, capsys):
    write_model_note(tmp_path, contract_of(toy_spec()))
    arguments = words("predict", "-i", ct_piece, "-o", tmp_path, "-m", "m", "--url", "127.0.0.1:9", "--timeout_s", 1)
    assert ctseg(arguments) == 3
    told = capsys.readouterr().err
    assert "ServerAwayError" in told
    assert f"what is not done in {tmp_path} is left" in told


@pytest.mark.parametrize(
    ("cause", "status"),
    [(OSError(errno.ENOSPC, "No space left"), 3), (OSError(errno.EACCES, "Permission denied"), 2), (None, 2)],
)
def test_a_full_disk_is_worth_trying_again_and_a_forbidden_folder_is_not(remembered, monkeypatch, cause, status):
    def refuse(*_: object) -> None:
        raise OutputError("out/report.json: cannot be written") from cause

    monkeypatch.setattr("ctseg.predict.review.fold_report", refuse)
    assert ctseg(words("report", "-o", remembered)) == status


@pytest.mark.live
def test_a_folder_with_a_bad_scan_exits_1_and_the_others_are_segmented(tmp_path, ct_piece, capsys):
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    shutil.copy(ct_piece, scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"")
    arguments = words("predict", "-i", scans, "-o", out, "-m", MODEL, "--repository", REPOSITORY, "--disable_tta")
    assert ctseg(arguments) == 1
    told = capsys.readouterr()
    assert "1 done, 0 skipped, 1 failed" in told.out
    assert told.err.count("InputError: case bad: ") == 1
    assert "failed: bad\n" in told.err
    report = Report.model_validate_json((out / "report.json").read_bytes())
    assert [(case.case, case.status) for case in report.cases] == [("bad", "failed"), ("good", "ok")]
    scan, labels = nib.load(scans / "good.nii.gz"), nib.load(out / "good.nii.gz")
    assert np.array_equal(scan.affine, labels.affine)
    assert scan.shape == labels.shape


@pytest.mark.live
def test_a_model_that_is_not_there_exits_2_and_lists_those_that_are(tmp_path, ct_piece, capsys):
    assert ctseg(words("predict", "-i", ct_piece, "-o", tmp_path, "-m", "liver", "--repository", REPOSITORY)) == 2
    told = capsys.readouterr().err
    assert "liver" in told
    assert MODEL in told


@pytest.mark.live
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_is_left_when_predict_is_stopped(tmp_path, demo_data, how):
    arguments = words("predict", "-i", demo_data / "images", "-o", tmp_path, "-m", MODEL, "--repository", REPOSITORY)
    with subprocess.Popen(
        [sys.executable, "-m", "ctseg", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background jobs ignore Ctrl-C, those of nohup SIGHUP, and hand that on to their children
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "serves" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "a server was meant to run"
        deadline = time.monotonic() + 300
        while not (tmp_path / "report.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        process.stderr.read()
        process.wait(300)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive
    # some cases may have been finished before: they are whole, and so is what is not in the report yet
    finished = Report.model_validate_json((tmp_path / "report.json").read_bytes()).cases
    assert {case.status for case in finished} <= {"ok"}
    written = [path for path in tmp_path.iterdir() if path.suffix == ".gz" and not path.name.startswith(".")]
    assert {f"{case.case}.nii.gz" for case in finished} <= {path.name for path in written}
    for path in written:
        assert np.asarray(nib.load(path).dataobj).max() <= 1
