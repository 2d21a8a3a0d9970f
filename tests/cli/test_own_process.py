"""Losing a terminal, a pipe or a log disk never loses a case, and the exit status is that of the work."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.planted import plant_modules, what_ran

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="has /dev/full, and an embedded server")
ROOT = Path(__file__).parents[2]
SAY = "from ctseg.cli import own_process\nimport os, sys\nown_process.prepare()\n"


@pytest.fixture
def scans(tmp_path: Path, ct_piece: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}_0000.nii.gz").symlink_to(ct_piece)
    return folder


def in_a_shell(redirection: str) -> Callable[[list[str], Path], int]:
    def run(command: list[str], folder: Path) -> int:
        script = f'"$@" {redirection}\necho ${{PIPESTATUS[0]}} > "$0"'
        subprocess.run(["bash", "-c", script, folder / "status", *command], check=False, capture_output=True)
        return int((folder / "status").read_text())

    return run


def on_a_terminal_that_goes_away(command: list[str], folder: Path) -> int:
    mine, its = pty.openpty()
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    os.read(mine, 10)  # it has begun to speak
    os.close(mine)
    return process.wait(500)


@pytest.mark.live
@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(in_a_shell("2>&1 | head -n 1"), id="a pipe that nobody reads any more"),
        pytest.param(in_a_shell("2> /dev/full"), id="a full log disk"),
        pytest.param(in_a_shell("> /dev/full 2>&1"), id="a full disk for all output"),
        pytest.param(in_a_shell("<&- >&- 2>&-"), id="all three streams closed"),
        pytest.param(on_a_terminal_that_goes_away, id="a terminal that goes away"),
    ],
)
def test_every_case_is_done_and_the_status_says_so(
    lost: Callable[[list[str], Path], int], tmp_path: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "out"
    words = ["predict", "-i", scans, "-o", out, "-m", "sarcoma", "--disable_tta", "--repository"]
    command = [str(word) for word in (sys.executable, "-m", "ctseg", *words, ROOT / "model_repository")]
    assert lost(command, tmp_path) == 0
    assert {path.name for path in out.glob("*.nii.gz")} == {"a.nii.gz", "b.nii.gz"}
    assert (out / "report.json").is_file()


@pytest.mark.parametrize("redirection", ["> /dev/full", "2> /dev/full > /dev/full", ">&- 2>&- <&-"])
def test_the_status_is_that_of_the_work_also_where_it_failed(
    redirection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "ctseg", "predict", "-i", tmp_path, "-o", tmp_path / "out", "-m", "x"]
    words = [str(word) for word in (*command, "--repository", tmp_path / "none")]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert in_a_shell(redirection)(words, tmp_path) == 2


def test_no_file_of_the_work_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    program = f"{SAY}file = open('out.txt', 'w')\nprint('a line for nobody')\nos.write(2, b'nor this')\n"
    program += "file.write(str(file.fileno() > 2))\nfile.close()\nsys.exit(len(sys.stdin.read()))"
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "out.txt").read_text() == "True"


def test_a_name_that_is_no_text_can_be_printed() -> None:
    program = f"{SAY}print('scan-\\udcff')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "scan-\\udcff\n"


def test_what_the_process_starts_finds_nothing_in_the_current_folder() -> None:
    program = f"{SAY}print(os.environ['PATH'], os.environ['PYTHONSAFEPATH'])"
    environment = {**os.environ, "PATH": ":/usr/bin:.", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "/usr/bin 1\n"


def test_python_m_takes_back_the_current_folder_before_anything_is_imported(tmp_path: Path) -> None:
    record = plant_modules(tmp_path)
    words = ["predict", "-i", ".", "-o", "out", "-m", "x", "--repository", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "ctseg", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert not what_ran(record)


def test_what_torchvision_warns_of_pictures_is_not_shown() -> None:
    warn = "import warnings\nwarnings.warn('Failed to load image Python extension: no libjpeg')\nwarnings.warn('other')"
    done = subprocess.run([sys.executable, "-c", SAY + warn], capture_output=True, text=True, check=True)
    assert "other" in done.stderr
    assert "Failed to load" not in done.stderr
