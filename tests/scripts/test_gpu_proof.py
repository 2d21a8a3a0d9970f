"""The proof on a GPU: what it says of a machine that has nothing, and of parts that fail, die or hang."""

import dataclasses
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.results import Scan
from ctseg.errors import SetupError
from ctseg.serving.installation import find_server
from scripts.gpu_proof.__main__ import BUDGET_S, main
from scripts.gpu_proof.bench import SMALL, Bench, Found
from scripts.gpu_proof.embedded_python import ask_embedded_python
from scripts.gpu_proof.proof import LEAST_S, Limits, Plan, _gpus_from_afar, prove
from scripts.gpu_proof.rows import JSON_NAME, PAGE_NAME, Host, Proof, Row, Teller, read_rows
from scripts.gpu_proof.sections import SECTIONS, Section, build, folder, memory, nccl, runtimes, serve

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
    written = Proof.model_validate_json((plan.output / JSON_NAME).read_bytes())
    assert verdicts(written) == [("hangs", "child", "ok"), ("hangs", "the whole section", "failed")]
    assert "the proof was stopped" in written.rows[1].found


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_parts_for_which_no_time_is_left_say_so(plan_of) -> None:
    proof = prove(plan_of("sound", "wrong", budget_s=1))
    assert verdicts(proof) == [("sound", "the part sound", "not run"), ("wrong", "the part wrong", "not run")]
    assert {row.found for row in proof.rows} == {"the time was over"}


def test_what_is_kept_for_each_part_fits_the_budget_and_its_own_limit() -> None:
    assert sum(section.least_s for section in SECTIONS) <= BUDGET_S
    for section in SECTIONS:
        assert LEAST_S < section.least_s <= section.limit_s


def test_an_early_part_cannot_take_what_is_kept_for_a_later_one(tmp_path: Path) -> None:
    first, second = Section("a", "", 100, "m", least_s=10), Section("b", "", 100, "m", least_s=40)
    limits = Limits(Plan((first, second), tmp_path, tmp_path, rehearse=False, budget_s=60))
    assert limits.of(first, left_s=60) == 20
    assert limits.of(second, left_s=40) == 40
    assert limits.of(second, left_s=58) == 58  # what the first left over
    assert limits.of(first, left_s=500) == 100


def test_a_small_budget_is_shared_out_in_proportion(tmp_path: Path) -> None:
    plan = Plan(SECTIONS, tmp_path, tmp_path, rehearse=False, budget_s=100)
    left_s = plan.budget_s
    for section in SECTIONS:  # each takes all that it may
        limit_s = Limits(plan).of(section, left_s)
        assert limit_s == pytest.approx(section.least_s * 100 / sum(every.least_s for every in SECTIONS))
        left_s -= limit_s


def test_a_part_that_hangs_leaves_the_next_its_time(plan_of) -> None:
    plan = plan_of("hangs", "sound", budget_s=36)
    sections = [plan.sections[0], dataclasses.replace(plan.sections[1], least_s=28)]
    proof = prove(dataclasses.replace(plan, sections=sections))
    assert verdicts(proof)[1:] == [("hangs", "the whole section", "failed"), ("sound", "sum", "ok")]
    assert "the time was over after" in proof.rows[1].found


def test_figures_that_are_no_numbers_leave_the_row_and_are_said(tmp_path: Path) -> None:
    tell = Teller("part", tmp_path / "rows")
    tell.judge("answers", False, "wrong", "right", relative_l2=math.nan, largest=math.inf, seconds=2.0)
    (row,) = read_rows(tmp_path / "rows")
    assert row.found == "wrong; relative_l2 is nan; largest is inf"
    assert (row.verdict, row.figures) == ("failed", {"seconds": 2.0})


def test_rows_have_words_for_the_folders_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/tmp/run/environment")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    tell = Teller("part", tmp_path / "rows")
    tell.ok(f"in {ROOT}", f"/tmp/run/environment/lib/a.so:/home/someone/x, '/tmp/y' {ROOT}/z.py", "not /data/tmp/q")
    (row,) = read_rows(tmp_path / "rows")
    assert row.what == "in REPOSITORY"
    assert row.found == "ENVIRONMENT/lib/a.so:HOME/x, 'TEMP/y' REPOSITORY/z.py"
    assert row.expected == "not /data/tmp/q"


@pytest.mark.parametrize(
    ("code", "gpus", "problem"),
    [
        ("print('a library says hello'); print('[\"H\"]')", ("H",), ""),
        ("print('[]')", (), ""),
        ("raise SystemExit('driver broke')", (), "the question ended with status 1: driver broke"),
        ("print('nothing to read')", (), "the question failed: JSONDecodeError"),
        ("import time; time.sleep(60)", (), "the question failed: TimeoutExpired"),
    ],
    ids=["noise", "none", "status", "no json", "hangs"],
)
def test_the_question_for_gpus_says_why_it_has_no_answer(
    code: str, gpus: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run
    monkeypatch.setattr("scripts.gpu_proof.proof.GPU_QUESTION_S", 2.0)
    monkeypatch.setattr(subprocess, "run", lambda words, **more: run([sys.executable, "-c", code], **more))
    found, said = _gpus_from_afar()
    assert found == gpus
    assert said.startswith(problem)
    assert bool(said) == bool(problem)


def test_gpus_that_nobody_could_ask_for_are_not_called_none() -> None:
    host = Host(
        system="s", processor="p", cpus=1, memory_gb=1, python="3", gpus=(), versions={}, gpus_problem="it hung"
    )
    proof = Proof(started="2026-11-27", seconds=1, rehearsal=False, host=host, rows=())
    assert "GPU: not known: it hung. p," in proof.to_markdown()


@pytest.mark.parametrize(
    ("broken", "wrong", "usable"),
    [
        ((), (), True),
        (("float32", "float16"), (), False),
        (("float16",), (), False),
        ((), ("float32",), False),
    ],
    ids=["right", "both break", "one breaks", "one is wrong"],
)
def test_onnxruntime_is_usable_only_where_each_type_was_right(
    broken: tuple[str, ...], wrong: tuple[str, ...], usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computes(tell: Teller, dtype: str, provider: str) -> bool:
        if dtype in broken:
            raise RuntimeError("no kernel")
        return dtype not in wrong

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(runtimes, "load_cuda_libraries", lambda: ())
    monkeypatch.setattr(runtimes, "_computes", computes)
    assert runtimes.look_at_onnxruntime(Teller("part", tmp_path / "rows"), rehearse=False) is usable


@pytest.mark.live
def test_the_python_inside_tritons_stub_imports_what_is_asked_for() -> None:
    inside = ask_embedded_python(find_server())
    assert inside.problems == ()
    assert inside.version == platform.python_version()
    assert "libpython" in inside.library


@pytest.fixture
def folder_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> folder.Job:
    """Compare programs that take a second each, but for FP16, which breaks."""

    def predict(bench: Bench, job: folder.Job, name: str, scans: Path, output: Path) -> float:
        if name == "fp16":
            raise SetupError("out of memory")
        return 1.0

    monkeypatch.setattr(folder, "_predict", predict)
    scan = Scan(case="a", shape=(8, 8, 8), spacing_mm=(1, 1, 1), origin="")
    return folder.Job("net", SMALL[0], {"fp32": "net_fp32", "fp16": "net_fp16"}, [scan], tmp_path)


def test_times_measured_before_a_program_breaks_are_told(folder_job: folder.Job, tmp_path: Path) -> None:
    tell = Teller("folder", tmp_path / "rows")
    startups = {"nnunet": 0.1, "fp32": 0.1, "fp16": 0.1}
    with tell.attempt("a folder"):
        folder._compare(Bench(tmp_path, rehearse=False), tell, folder_job, startups)
    assert [(row.what, row.figures.get("wall_s"), row.verdict) for row in read_rows(tmp_path / "rows")] == [
        ("net, nnU-Net: turn 1", 1.0, "ok"),
        ("net, ctseg, fp32: turn 1", 1.0, "ok"),
        ("a folder", None, "failed"),
    ]


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [(2.0, ["a folder with net, second turn"]), (60.0, ["net, ctseg, fp32: turn 2", "net, nnU-Net: turn 2"])],
    ids=["no time", "time"],
)
def test_a_second_turn_is_taken_only_where_time_is_left(
    left_s: float, expected: list[str], folder_job: folder.Job, tmp_path: Path
) -> None:
    programs = {name: folder.Runs(0.1, [1.0], [tmp_path]) for name in ("nnunet", "fp32")}
    bench = Bench(tmp_path, rehearse=False, killed_at=time.monotonic() + left_s)
    folder._compare_again(bench, Teller("folder", tmp_path / "rows"), folder_job, programs)
    rows = read_rows(tmp_path / "rows")
    assert [row.what for row in rows][: len(expected)] == expected
    assert rows[0].verdict == ("ok" if left_s > 2 else "not run")


def test_what_was_found_before_a_crash_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(tell: Teller) -> str:
        raise KeyboardInterrupt  # which no attempt holds

    monkeypatch.setattr(runtimes, "_gpu", lambda tell: 2)
    monkeypatch.setattr(runtimes, "_onnxruntime_apart", lambda tell, rehearse: True)
    monkeypatch.setattr(runtimes, "_nnunet", lambda bench, tell: True)
    monkeypatch.setattr(runtimes, "_tensorrt", crash)
    with pytest.raises(KeyboardInterrupt):
        runtimes.run(Bench(tmp_path, rehearse=False), Teller("runtimes", tmp_path / "rows"))
    assert Bench(tmp_path, rehearse=False).found == Found(gpus=2, onnxruntime_cuda=True, nnunet=True)


def test_the_large_networks_are_built_after_the_demo_and_in_fp16_first() -> None:
    assert build.in_order(["a", "b"])[:4] == [
        ("sarcoma", "fp32"), ("sarcoma", "fp16"), ("sarcoma_graph", "fp32"), ("sarcoma_graph", "fp16"),
    ]  # fmt: skip
    assert build.in_order(["a", "b"])[4:] == [("a", "fp16"), ("b", "fp16"), ("a", "fp32"), ("b", "fp32")]


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


def test_every_part_has_a_name_of_its_own_and_a_module() -> None:
    names = [section.name for section in SECTIONS]
    assert names[:4] == ["runtimes", "memory", "nccl", "export"]
    assert len(set(names)) == len(names)
    for section in SECTIONS:
        file = ROOT / (section.module.replace(".", "/") + ".py")
        assert "def run(bench: Bench, tell: Teller) -> None:" in file.read_text()


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "runtimes", "tensorrt"])
    assert "no part tensorrt: there are runtimes, memory" in capsys.readouterr().err


def test_the_command_begins_with_the_standard_library_alone() -> None:
    """On a bare machine it installs what it needs, so it cannot need it."""
    code = (
        "import sys; import scripts.gpu_proof.__main__, scripts.gpu_proof.wheels; "
        "print([name for name in sys.modules if name in ('numpy', 'pydantic', 'psutil', 'torch', 'ctseg')])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
