"""The proof on a GPU: what it says of a machine that has nothing, and of parts that fail, die or hang."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.gpu_proof.__main__ import main
from scripts.gpu_proof.bench import Bench, Found
from scripts.gpu_proof.proof import Plan, prove
from scripts.gpu_proof.rows import JSON_NAME, PAGE_NAME, Host, Proof, Row, Teller, read_rows
from scripts.gpu_proof.sections import SECTIONS, Section, build, folder, memory, nccl, serve

ROOT = Path(__file__).parents[2]
PARTS = {
    "sound": """
def run(bench, tell):
    tell.judge("sum", 1 + 1 == 2, "2", "2", sum=2.0)
""",
    "wrong": """
def run(bench, tell):
    tell.judge("sum", False, "3", "2")
""",
    "dies": """
import os, signal
def run(bench, tell):
    tell.ok("first", "done")
    os.kill(os.getpid(), signal.SIGKILL)
""",
    "silent": """
def run(bench, tell):
    pass
""",
    "hangs": """
import subprocess, time
def run(bench, tell):
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    tell.ok("child", str(child.pid))
    time.sleep(300)
""",
    "raises": """
def run(bench, tell):
    with tell.attempt("half"):
        raise ValueError("no half")
    tell.ok("rest", "done")
""",
}


@pytest.fixture
def plan_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a plan of parts that lie in a folder of their own."""
    for name, text in PARTS.items():
        (tmp_path / f"part_{name}.py").write_text(text)
    for folder_name in ("output", "scratch"):
        (tmp_path / folder_name).mkdir()
    monkeypatch.setattr("scripts.gpu_proof.proof.PYTHON_PATH", os.pathsep.join([str(ROOT), str(tmp_path)]))

    def plan(*names: str, limit_s: float = 60, budget_s: float = 300) -> Plan:
        sections = [Section(name, f"the part {name}", limit_s, f"part_{name}") for name in names]
        return Plan(sections, tmp_path / "output", tmp_path / "scratch", rehearse=False, budget_s=budget_s)

    return plan


def verdicts(proof: Proof) -> list[tuple[str, str, str]]:
    return [(row.section, row.what, row.verdict) for row in proof.rows if row.what != "its time"]


def test_a_part_that_fails_or_dies_is_told_and_the_others_go_on(plan_of) -> None:
    plan = plan_of("wrong", "dies", "silent", "raises", "sound")
    proof = prove(plan)
    assert verdicts(proof) == [
        ("wrong", "sum", "failed"),
        ("dies", "first", "ok"),
        ("dies", "the whole section", "failed"),
        ("silent", "the whole section", "failed"),
        ("raises", "half", "failed"),
        ("raises", "rest", "ok"),
        ("sound", "sum", "ok"),
    ]
    assert "status -9" in next(row.found for row in proof.rows if row.section == "dies" and row.verdict == "failed")
    assert Proof.model_validate_json((plan.output / JSON_NAME).read_bytes()) == proof
    page = (plan.output / PAGE_NAME).read_text()
    assert "| half | ValueError: no half | no error | **failed** |" in page


def test_a_part_that_hangs_is_ended_with_all_that_it_started(plan_of) -> None:
    began = time.monotonic()
    proof = prove(plan_of("hangs", "sound", limit_s=12))
    assert time.monotonic() - began < 60
    assert verdicts(proof) == [
        ("hangs", "child", "ok"),
        ("hangs", "the whole section", "failed"),
        ("sound", "sum", "ok"),
    ]
    assert "not done within 12 s, killed" in proof.rows[1].found
    assert not is_running(int(proof.rows[0].found))


def test_a_proof_that_is_stopped_leaves_no_part_running(plan_of, tmp_path: Path) -> None:
    plan = plan_of("hangs")
    code = (
        "import signal, sys; from pathlib import Path; import scripts.gpu_proof.proof as proof; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        f"proof.PYTHON_PATH = {os.pathsep.join([str(ROOT), str(tmp_path)])!r}; "
        "from scripts.gpu_proof.sections import Section; "
        f"proof.prove(proof.Plan([Section('hangs', '', 60, 'part_hangs')], Path({str(plan.output)!r}), "
        f"Path({str(plan.scratch)!r}), False, 300))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until = time.monotonic() + 60
    while not (rows := read_rows(plan.scratch / "hangs.rows")) and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(0.5)  # the child is seen at the next look
    process.terminate()
    assert process.wait(timeout=30) == 143
    assert not is_running(int(rows[0].found))


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_parts_for_which_no_time_is_left_say_so(plan_of) -> None:
    proof = prove(plan_of("sound", "wrong", budget_s=1))
    assert verdicts(proof) == [("sound", "the part sound", "not run"), ("wrong", "the part wrong", "not run")]
    assert {row.found for row in proof.rows} == {"the time was over"}


def test_rows_come_back_from_a_file_whose_last_line_was_cut_off(tmp_path: Path) -> None:
    tell = Teller("part", tmp_path / "rows")
    tell.ok("speed", "3.1 windows/s", "at least 2", windows_per_second=3.1)
    tell.not_found("GPU", "no driver")
    with (tmp_path / "rows").open("a") as file:
        file.write('{"section": "part", "what": "ha')
    assert read_rows(tmp_path / "rows") == [
        Row(
            section="part", what="speed", found="3.1 windows/s", expected="at least 2", verdict="ok",
            figures={"windows_per_second": 3.1},
        ),
        Row(section="part", what="GPU", found="no driver", verdict="not found"),
    ]  # fmt: skip


def test_the_table_keeps_its_columns_whatever_an_error_says() -> None:
    host = Host(system="s", processor="p", cpus=1, memory_gb=1, python="3", gpus=(), versions={})
    row = Row(section="a", what="b", found="x | y\nend" + "z" * 1000, verdict="failed")
    proof = Proof(started="2026-11-27", seconds=1, rehearsal=True, host=host, rows=(row,))
    line = proof.to_markdown().splitlines()[-1]
    assert line.startswith("| b | … ")
    assert line.replace("\\|", "").count("|") == 5
    assert "none of its figures counts" in proof.to_markdown()


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (build, {"not found", "not run"}),
        (serve, {"not run"}),
        (folder, {"not run"}),
        (memory, {"not found"}),
        (nccl, {"not found"}),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_a_machine_that_has_nothing_gets_rows_and_no_failure(part, expected: set[str], tmp_path: Path) -> None:
    bench = Bench(tmp_path, rehearse=False)
    bench.keep(Found())
    part.run(bench, Teller("part", tmp_path / "rows"))
    rows = read_rows(tmp_path / "rows")
    assert {row.verdict for row in rows} == expected
    assert all(row.found for row in rows)


def test_every_part_is_there_and_has_time_within_its_own_name() -> None:
    names = [section.name for section in SECTIONS]
    assert names[:3] == ["runtimes", "export", "build"]
    assert len(set(names)) == len(names)
    for section in SECTIONS:
        file = ROOT / (section.module.replace(".", "/") + ".py")
        assert "def run(bench: Bench, tell: Teller) -> None:" in file.read_text()


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "runtimes", "tensorrt"])
    assert "no part tensorrt: there are runtimes, export" in capsys.readouterr().err


def test_the_command_begins_with_the_standard_library_alone() -> None:
    """On a bare machine it installs what it needs, so it cannot need it."""
    code = (
        "import sys; import scripts.gpu_proof.__main__, scripts.gpu_proof.wheels; "
        "print([name for name in sys.modules if name in ('numpy', 'pydantic', 'psutil', 'torch', 'ctseg')])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_json_says_of_which_schema_it_is() -> None:
    host = Host(system="s", processor="p", cpus=1, memory_gb=1, python="3", gpus=(), versions={})
    proof = Proof(started="2026-11-27", seconds=1, rehearsal=False, host=host, rows=())
    assert json.loads(proof.model_dump_json())["schema_version"] == 1
