"""A folder on Dask: a real cluster, a real Triton server, and workers that are killed."""

import dataclasses
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import dask
import distributed
import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import ServerAwayError, ServerUnavailableError, SetupError
from ctseg.files.cases import find_cases
from ctseg.files.scans import find_scans
from ctseg.predict.ledger import Ledger
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import MEMORY_NAME, OutcomeStore
from ctseg.predict.presence import OtherRuns, Presence
from ctseg.predict.report import Report
from ctseg.recipe import Recipe
from ctseg.runs.dask import DaskScheduler, segment_folder_on_dask
from ctseg.runs.dask_run import _version_problem
from ctseg.runs.dask_worker import CasesOnWorker, Job, Sample, Task, sample_of
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.publish import EntryDraft, publish
from ctseg.serving.recipe_entry import publish_recipe
from ctseg.serving.server import embedded_server
from ctseg.triton.configuration import spec_parameter
from ctseg.triton.options import ClientOptions
from tests.support.live_triton import ANSWER, free_port, wait_for
from tests.support.toy_models import save_toy_network, toy_spec, write_foreign_entry, write_toy_entry

VARIABLE = "CTSEG_TEST_TRITON_KEY"
CASES = ("case0", "case1", "case2", "case3")
OPTIONS = BatchOptions()
SEG_RESAMPLING = "resample_data_or_seg_to_shape"


class Gate:
    """Holds the model ``held``: each request begins, and is answered once the test lets it go.

    Args:
        folder: Where model and test tell each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def code(self) -> str:
        return (
            "import os, uuid\n"
            f"shut = {str(self._folder / 'shut')!r}\n"
            "if os.path.exists(shut):\n"
            "    name = uuid.uuid4().hex\n"
            f"    open(os.path.join({str(self._folder)!r}, 'begun-' + name), 'w').close()\n"
            f"    while os.path.exists(shut) and not os.path.exists({str(self._folder)!r} + '/go-' + name):\n"
            "        time.sleep(0.02)\n"
            f"{ANSWER}"
        )

    def shut(self) -> None:
        (self._folder / "shut").touch()

    def open(self) -> None:
        (self._folder / "shut").unlink(missing_ok=True)
        for path in self._folder.glob("begun-*"):
            path.unlink()

    @property
    def begun(self) -> list[str]:
        return [path.name.removeprefix("begun-") for path in self._folder.glob("begun-*")]

    def let_go(self, name: str) -> None:
        (self._folder / f"go-{name}").touch()
        (self._folder / f"begun-{name}").unlink()


@pytest.fixture(scope="module")
def the_gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture
def gate(the_gate: Gate) -> Iterator[Gate]:
    yield the_gate
    the_gate.open()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, the_gate: Gate) -> Path:
    root = tmp_path_factory.mktemp("dask") / "models"
    write_toy_entry(root)
    first = toy_spec()
    previous = {"model": "toy", "digest": first.digest, "labels": [1, 2], "resampling": {"function": SEG_RESAMPLING}}
    sees_labels = np.hstack([np.zeros((3, 2)), [[-1, -1], [1, 0], [0, 1]]]).astype(np.float32)
    network = save_toy_network(root.parent / "second.onnx", weights=sees_labels)
    second = toy_spec("second", previous_stage=previous)
    publish(root, EntryDraft(spec=second, backend="python", model_file=network), 1)
    members = [{"model": spec.name, "digest": spec.digest} for spec in (first, second)]
    step = {"kind": "cascade", "previous": "toy", "model": "second"}
    publish_recipe(root, Recipe.model_validate({"name": "cascade", "members": members, "step": step}))
    write_foreign_entry(root, "held", the_gate.code, parameters={spec_parameter(1): toy_spec("held").to_json()})
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    """A private server: whoever has no key gets no answer."""
    with embedded_server(models, options=ServerOptions(prove=False)) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(server: RunningServer) -> Iterator[distributed.LocalCluster]:
    """Two worker processes of one thread; only they have the server's key."""
    (key,) = server.headers.values()
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", worker_dashboard_address=":0", env={VARIABLE: key},
        silence_logs=logging.CRITICAL,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
def scheduler(cluster: distributed.LocalCluster) -> DaskScheduler:
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
    return DaskScheduler(cluster.scheduler_address)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four cases of one window and two channels each."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(CASES):
        for channel in range(2):
            voxels = np.random.default_rng([number, channel]).normal(0, 1, (14, 10, 6)).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), folder / f"{name}_{channel:04d}.nii.gz")
    return folder


def model_on(server: RunningServer, name: str = "toy", **options: object) -> ServedModel:
    return ServedModel(name, urls=(server.url,), client=ClientOptions(**options))


def variables_of(server: RunningServer) -> dict[str, str]:
    return dict.fromkeys(server.headers, VARIABLE)


def segment(scans: Path, output: Path, model: ServedModel, scheduler: DaskScheduler, server: RunningServer) -> Report:
    return segment_folder_on_dask(scans, output, model, OPTIONS, scheduler, header_variables=variables_of(server))


def statuses(report: Report) -> dict[str, str]:
    return {outcome.case: outcome.status for outcome in report.cases}


def labels_in(folder: Path) -> dict[str, bytes]:
    return {path.name: np.asarray(nib.load(path).dataobj).tobytes() for path in folder.glob("*.nii.gz")}


def runs_in(output: Path) -> list[str]:
    return [path.name for path in (output / MEMORY_NAME / "runs").iterdir()]


@pytest.fixture
def undisturbed(scans: Path, tmp_path: Path, server: RunningServer) -> dict[str, bytes]:
    """Labels of the same folder, segmented by one process."""
    segment_folder(scans, tmp_path / "undisturbed", model_on(server, headers=server.headers), OPTIONS)
    found = labels_in(tmp_path / "undisturbed")
    assert len(found) == len(CASES)
    return found


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


@pytest.mark.live
def test_workers_give_the_labels_of_one_process_with_keys_from_their_own_environment(
    scans, tmp_path, server, scheduler, undisturbed, caplog
):
    assert VARIABLE not in os.environ
    report = segment(scans, tmp_path / "out", model_on(server), scheduler, server)
    assert statuses(report) == dict.fromkeys(CASES, "ok")
    assert labels_in(tmp_path / "out") == undisturbed
    written = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert written.finished
    assert statuses(written) == statuses(report)
    assert runs_in(tmp_path / "out") == []

    # a corrected scan is done again, and why comes to the client's log; the others are not
    shutil.copy(scans / "case1_0000.nii.gz", scans / "case2_0000.nii.gz")
    options = BatchOptions(continue_prediction=True)
    again = segment_folder_on_dask(
        scans, tmp_path / "out", model_on(server), options, scheduler, header_variables=variables_of(server)
    )
    assert statuses(again) == {**dict.fromkeys(CASES, "skipped"), "case2": "ok"}
    assert "case2: done again: its scan is not the one that was segmented" in caplog.text


@pytest.mark.live
def test_workers_take_the_label_maps_of_a_first_stage(scans, tmp_path, server, scheduler, undisturbed):
    out = tmp_path / "out"
    options = BatchOptions(prev_stage_predictions=tmp_path / "undisturbed")
    (tmp_path / "undisturbed" / "case1.nii.gz").unlink()
    report = segment_folder_on_dask(
        scans, out, model_on(server, "second"), options, scheduler, header_variables=variables_of(server)
    )
    assert statuses(report) == {**dict.fromkeys(CASES, "ok"), "case1": "failed"}
    assert "case1: expected a label map of the previous stage" in next(c.error.message for c in report.cases if c.error)
    del undisturbed["case1.nii.gz"]
    assert labels_in(out) == undisturbed  # the second stage gives what the first one gave


@pytest.mark.live
@pytest.mark.parametrize(("where", "transport"), [("client", "shared memory"), ("server", "whole scans")])
def test_workers_run_all_members_of_a_recipe(scans, tmp_path, server, scheduler, undisturbed, where, transport):
    model = dataclasses.replace(model_on(server, "cascade"), where=where)
    report = segment(scans, tmp_path / "out", model, scheduler, server)
    assert statuses(report) == dict.fromkeys(CASES, "ok")
    made_by = report.cases[0].made_by
    assert made_by.transport == transport
    assert [(member.model, member.model_version) for member in made_by.members] == [("toy", "1"), ("second", "1")]
    assert labels_in(tmp_path / "out") == undisturbed  # the second stage gives what the first one gave


@pytest.mark.live
def test_a_case_whose_worker_is_killed_is_done_by_another_and_none_is_done_twice(
    scans, tmp_path, server, cluster, scheduler, gate, undisturbed, in_background
):
    output = tmp_path / "out"
    gate.shut()
    running = in_background(segment, scans, output, model_on(server, "held"), scheduler, server)
    wait_for(lambda: running.done() or gate.begun)
    claims = [json.loads(path.read_text()) for path in (output / MEMORY_NAME / "claims").glob("*.json")]
    victim = claims[0]["run"]
    os.kill(pid_of(victim), signal.SIGKILL)
    gate.open()
    assert statuses(running.result()) == dict.fromkeys(CASES, "ok")
    assert labels_in(output) == undisturbed
    by = [outcome.made_by.run for _, outcome in OutcomeStore(output).all() if outcome and outcome.made_by]
    assert len(by) == len(CASES)
    assert victim not in by
    assert not list((output / MEMORY_NAME / "claims").glob("*.json"))


def pid_of(run: str) -> int:
    return int(run.split(".")[1])


@pytest.fixture
def one_worker(server: RunningServer) -> Iterator[DaskScheduler]:
    """One worker process of three threads; a case is given up when it has killed two alone, not four."""
    (key,) = server.headers.values()
    with (
        # by default a local cluster gives up a worker for good that is away 15 s after it was lost, be it lost again
        dask.config.set(
            {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "1 hour"}
        ),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=3, dashboard_address=":0", worker_dashboard_address=":0",
            env={VARIABLE: key}, silence_logs=logging.CRITICAL,
        ) as running,
    ):  # fmt: skip
        yield DaskScheduler(running.scheduler_address)


@pytest.mark.live
def test_a_case_that_kills_its_workers_fails_by_name_and_those_that_died_with_it_are_done(
    scans, tmp_path, server, one_worker, gate, in_background, caplog
):
    output = tmp_path / "out"
    gate.shut()
    running = in_background(segment, scans, output, model_on(server, "held"), one_worker, server)

    def one_more() -> bool:
        """Kill the worker of case1; let every other request go."""
        for name in gate.begun:
            for path in (output / MEMORY_NAME / "claims").glob("case1-*.json"):
                try:
                    os.kill(pid_of(json.loads(path.read_text())["run"]), signal.SIGKILL)
                except (FileNotFoundError, ProcessLookupError):
                    continue
            gate.let_go(name)
        return running.done()

    wait_for(one_more)
    report = running.result()
    assert statuses(report) == {**dict.fromkeys(CASES, "ok"), "case1": "failed"}
    (failed,) = [outcome for outcome in report.cases if outcome.status == "failed"]
    assert failed.error is not None
    assert failed.error.message.startswith("case case1: 2 Dask workers died while they did it")
    assert statuses(Report.model_validate_json((output / "report.json").read_bytes())) == statuses(report)
    assert set(labels_in(output)) == {f"{name}.nii.gz" for name in CASES if name != "case1"}
    assert "case1: in flight when a worker or another run was killed, or fell silent" in caplog.text


@pytest.mark.live
def test_servers_that_stay_away_end_the_run_and_leave_what_is_not_done(
    scans, tmp_path, server, models, scheduler, gate, in_background, caplog
):
    gate.shut()
    with embedded_server(models, options=ServerOptions(prove=False, is_private=False)) as other:
        model = model_on(other, "held", timeout_s=2.0)
        running = in_background(segment, scans, tmp_path / "out", model, scheduler, server)
        wait_for(lambda: running.done() or gate.begun)
        os.kill(other.pid, signal.SIGKILL)
        report = running.result()
    assert report.went_away
    assert {case.case: case.reason for case in report.not_done} == dict.fromkeys(CASES, "server away")
    assert "ServerAwayError: no Dask worker can work" in caplog.text
    assert labels_in(tmp_path / "out") == {}


@pytest.mark.live
def test_an_output_disk_that_the_client_loses_ends_the_run_and_leaves_what_is_not_done(
    scans, tmp_path, server, scheduler, gate, in_background, caplog
):
    gate.shut()
    running = in_background(segment, scans, tmp_path / "out", model_on(server, "held"), scheduler, server)
    wait_for(lambda: running.done() or gate.begun)
    outcomes = tmp_path / "out" / MEMORY_NAME / "outcomes"
    outcomes.rmdir()
    outcomes.touch()  # whoever looks for an outcome finds no folder
    gate.open()
    report = running.result()
    assert report.went_away
    assert {case.case: case.reason for case in report.not_done} == dict.fromkeys(CASES, "output disk away")
    assert "cannot be looked at: [Errno 20] Not a directory" in caplog.text
    assert labels_in(tmp_path / "out") == {}


@pytest.mark.live
def test_a_worker_that_comes_late_does_not_do_again_what_has_ended_since_the_run_began(
    scans, tmp_path, server, monkeypatch
):
    (key,) = server.headers.values()
    monkeypatch.setenv(VARIABLE, key)
    output = tmp_path / "out"
    output.mkdir()
    case = find_cases(scans, channels=2)[0]
    with Presence(output) as client:
        job = Job(client.run, output, None, model_on(server), variables_of(server), OPTIONS)
        assert key.encode() not in pickle.dumps(CasesOnWorker(job))
        first, late = on_worker(job), on_worker(job)
        task = Task(case, 0, "", first.ready().contract.digest, "a list")
        ended = first.answer(task).outcome
        assert ended is not None
        assert ended.status == "ok"
        assert late.answer(task).outcome == ended  # as Dask does when a result is lost with its worker
        # what had ended before the run began is done again
        again = late.answer(dataclasses.replace(task, before=OutcomeStore(output).digest("case0"))).outcome
        assert again is not None
        assert again.made_by != ended.made_by
        for plugin in (first, late):
            plugin._end()
        assert runs_in(output) == [client.run]
        assert first.answer(task).problem == "SetupError: the run has ended here"


def on_worker(job: Job) -> CasesOnWorker:
    plugin = pickle.loads(pickle.dumps(CasesOnWorker(job)))
    plugin.setup(SimpleNamespace(memory_manager=SimpleNamespace(memory_limit=None)))
    return plugin


@pytest.mark.live
def test_a_case_that_another_run_works_on_is_waited_for(scans, tmp_path, server, scheduler, in_background):
    output = tmp_path / "out"
    output.mkdir()
    with Presence(output) as other:
        ledger = Ledger(output, other, overwrite=False)
        claim = ledger.claims.take("case1")
        assert claim is not None
        running = in_background(segment, scans, output, model_on(server), scheduler, server)
        wait_for(lambda: running.done() or len(labels_in(output)) == 3)
        assert not running.done()
        ledger.claims.drop(claim)
        assert statuses(running.result()) == dict.fromkeys(CASES, "ok")


@pytest.fixture
def stranger(tmp_path: Path, cluster: distributed.LocalCluster, server: RunningServer) -> Callable[[], str]:
    """Start a worker that sees an empty folder where the scans and the output are; returns its address."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no mount namespaces")
    (key,) = server.headers.values()
    started: list[subprocess.Popen] = []

    def start() -> str:
        with distributed.Client(cluster, set_as_default=False) as client:
            before = set(client.nthreads())
            hidden = f"mount -t tmpfs none {tmp_path} && exec {sys.executable} -m distributed.cli.dask_worker"
            words = (
                f"{hidden} {cluster.scheduler_address} --nthreads 1 --no-dashboard --no-nanny --local-directory /tmp"
            )
            started.append(
                subprocess.Popen(
                    ["unshare", "--mount", "sh", "-c", words],
                    env={**os.environ, VARIABLE: key},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            wait_for(lambda: set(client.nthreads()) - before)
            (address,) = set(client.nthreads()) - before
            return address

    yield start
    with distributed.Client(cluster, set_as_default=False) as client:
        for process in started:
            process.terminate()
            process.wait(60)
        wait_for(lambda: len(client.nthreads()) == 2)


@pytest.mark.live
def test_a_worker_that_does_not_share_the_folders_is_named_and_gets_no_case(
    scans, tmp_path, server, scheduler, gate, stranger, in_background, caplog
):
    gate.shut()
    running = in_background(segment, scans, tmp_path / "out", model_on(server, "held"), scheduler, server)
    wait_for(lambda: running.done() or gate.begun)
    address = stranger()
    told = f"Dask worker {address} is left aside: SetupError: in {tmp_path / 'out'} it does not see what the client"
    wait_for(lambda: told in caplog.text)
    gate.open()
    assert statuses(running.result()) == dict.fromkeys(CASES, "ok")

    with pytest.raises(SetupError, match=f"Dask worker {address}: SetupError: in .* it does not see"):
        segment(scans, tmp_path / "again", model_on(server), scheduler, server)
    assert labels_in(tmp_path / "again") == {}


@pytest.fixture
def command(scans: Path, server: RunningServer, scheduler: DaskScheduler) -> Callable[..., subprocess.Popen]:
    """Start ``ctseg predict`` on the model that the gate holds."""
    words = ["predict", "-i", scans, "-m", "held", "--url", server.url, "--timeout_s", 30]
    words += ["--header_env", *(f"{header}={VARIABLE}" for header in server.headers)]

    def start(output: Path, address: str = scheduler.address) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "ctseg", *map(str, [*words, "-o", output, "--dask", address])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # a shell's background jobs ignore Ctrl-C and hand that on to their children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    return start


@pytest.mark.live
@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full)]
)
def test_a_client_that_is_stopped_drops_what_is_half_done_and_leaves_the_cluster_ready(
    scans, tmp_path, server, scheduler, gate, command, how, status
):
    output = tmp_path / "out"
    gate.shut()
    with command(output) as process:
        wait_for(lambda: process.poll() is not None or gate.begun)
        process.send_signal(how)
        told, _ = process.communicate(timeout=300)
    assert process.returncode == status, told
    report = Report.model_validate_json((output / "report.json").read_bytes())
    assert report.finished
    assert [case.case for case in report.not_done] == list(CASES)
    assert runs_in(output) == []
    gate.open()
    assert statuses(segment(scans, output, model_on(server, "held"), scheduler, server)) == dict.fromkeys(CASES, "ok")


@pytest.mark.full  # workers look for a client that was killed every ten seconds
@pytest.mark.live
def test_workers_finish_and_leave_the_folder_of_a_client_that_was_killed(
    scans, tmp_path, server, scheduler, gate, command
):
    output = tmp_path / "out"
    gate.shut()
    with command(output) as process:
        wait_for(lambda: process.poll() is not None or gate.begun)
        process.kill()
    gate.open()
    wait_for(lambda: OtherRuns(output).living() == [])
    done = [outcome for _, outcome in OutcomeStore(output).all() if outcome]
    assert done
    assert {outcome.status for outcome in done} == {"ok"}
    assert len(done) < len(CASES)
    assert statuses(segment(scans, output, model_on(server, "held"), scheduler, server)) == dict.fromkeys(CASES, "ok")
    assert runs_in(output) == []


@pytest.mark.full  # Dask's client waits half a minute for a scheduler that has gone
@pytest.mark.live
def test_a_scheduler_that_is_killed_ends_the_run_and_leaves_what_is_not_done(scans, tmp_path, server, gate, command):
    (key,) = server.headers.values()
    address = f"tcp://127.0.0.1:{free_port()}"
    dask_words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    worker_words = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard", "--nthreads", "1"]
    gate.shut()
    with (
        subprocess.Popen(dask_words, **quiet) as killed,
        subprocess.Popen(
            [*worker_words, "--local-directory", str(tmp_path / "dask")], env={**os.environ, VARIABLE: key}, **quiet
        ) as worker,
        command(tmp_path / "out", address) as process,
    ):
        wait_for(lambda: process.poll() is not None or gate.begun)
        killed.kill()
        told, _ = process.communicate(timeout=500)
        gate.open()
        worker.terminate()
    assert process.returncode == 3, told
    assert "the Dask scheduler went away" in told
    assert "not done: case0, case1, case2, case3" in told
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert {case.reason for case in report.not_done} == {"workers away"}


@pytest.mark.live
def test_workers_without_the_variable_of_a_header_are_named(scans, tmp_path, server, scheduler):
    with pytest.raises(SetupError, match=r"Dask worker tcp://.*: the environment variable NO_SUCH is not set there"):
        segment_folder_on_dask(
            scans, tmp_path / "out", model_on(server), OPTIONS, scheduler, header_variables={"authorization": "NO_SUCH"}
        )


def test_what_cannot_be_handed_to_workers_is_refused_before_anything_is_asked(tmp_path):
    nobody = DaskScheduler("tcp://127.0.0.1:9")
    with pytest.raises(SetupError, match="name running servers") as caught:
        segment_folder_on_dask(tmp_path, tmp_path, ServedModel("toy", repository=tmp_path), OPTIONS, nobody)
    assert caught.value.settings == ("urls",)
    secret = ServedModel("toy", urls=("gpu1:8001",), client=ClientOptions(headers={"authorization": "Bearer s3cret"}))
    with pytest.raises(SetupError, match="would travel through Dask's scheduler") as caught:
        segment_folder_on_dask(tmp_path, tmp_path, secret, OPTIONS, nobody)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("tcp://gpu1:8786", "reached over a network without TLS"),
        ("gpu1:8786", "reached over a network without TLS"),
        ("tcp://10.0.0.5:8786", "reached over a network without TLS"),
        ("tcp://127.0.0.1.example.org:8786", "reached over a network without TLS"),
        ("ws://127.0.0.1:8786", "expected tls://host:port"),
        ("gpu1", "expected tls://host:port"),
        ("tls://gpu1", "expected tls://host:port"),
        ("tls://gpu1:8786", "asks for certificates"),
    ],
)
def test_a_scheduler_that_would_be_reached_without_protection_is_refused(tmp_path, address, told):
    model = ServedModel("toy", urls=("gpu1:8001",))
    (tmp_path / "scan.nii.gz").touch()
    with pytest.raises(SetupError, match=told):
        segment_folder_on_dask(tmp_path, tmp_path / "out", model, OPTIONS, DaskScheduler(address))
    assert not (tmp_path / "out").exists()


@pytest.mark.live
def test_a_scheduler_that_listens_to_a_network_is_refused_behind_a_loopback_address_too(scans, tmp_path, server):
    with distributed.LocalCluster(n_workers=0, host="0.0.0.0", dashboard_address=":0") as cluster:
        if "127.0.0.1" in cluster.scheduler_address:
            pytest.skip("this machine has no address but loopback")
        behind = f"tcp://127.0.0.1:{cluster.scheduler_address.rpartition(':')[2]}"
        with pytest.raises(SetupError, match="reached over a network without TLS"):
            segment(scans, tmp_path / "out", model_on(server), DaskScheduler(behind), server)
        meant = DaskScheduler(behind, insecure=True)
        with pytest.raises(ServerAwayError, match=r"none has come for 0\.1 s: start workers"):
            segment(scans, tmp_path / "out", model_on(server, timeout_s=0.1), meant, server)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority, a certificate that it has signed, and one that it has not."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificates with openssl")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cluster.csr", "-subj", "/CN=cluster")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "cluster.pem")
    openssl("x509", "-req", "-in", "cluster.csr", *signed)
    openssl("x509", "-req", "-in", "cluster.csr", "-signkey", "key", "-out", "other.pem")
    return tmp_path


@pytest.mark.live
def test_a_cluster_with_certificates_is_used_by_who_has_one(scans, tmp_path, server, certificates, monkeypatch):
    (key,) = server.headers.values()
    ca, certificate, other, own_key = (certificates / name for name in ("ca.pem", "cluster.pem", "other.pem", "key"))
    roles = {f"tls_{role}_{what}": str(path) for role in ("client", "scheduler", "worker")
             for what, path in (("cert", certificate), ("key", own_key))}  # fmt: skip
    security = distributed.Security(tls_ca_file=str(ca), require_encryption=True, **roles)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address=":0", worker_dashboard_address=":0", protocol="tls://",
        security=security, env={VARIABLE: key}, silence_logs=logging.CRITICAL,
    ) as cluster:  # fmt: skip
        address = cluster.scheduler_address
        assert address.startswith("tls://")
        scheduler = DaskScheduler(address, tls_ca=ca, tls_certificate=certificate, tls_key=own_key)
        report = segment(scans, tmp_path / "out", model_on(server), scheduler, server)
        assert statuses(report) == dict.fromkeys(CASES, "ok")
        monkeypatch.setattr("ctseg.runs.dask._CONNECT_TIMEOUT_S", 1.0)
        with pytest.raises(ServerUnavailableError, match="no Dask scheduler answers at tls://"):
            segment(
                scans, tmp_path / "no", model_on(server), dataclasses.replace(scheduler, tls_certificate=other), server
            )
    missing = dataclasses.replace(scheduler, tls_ca=tmp_path / "nowhere.pem")
    with pytest.raises(SetupError, match="certificate for the Dask scheduler cannot be used") as caught:
        segment(scans, tmp_path / "no", model_on(server), missing, server)
    assert caught.value.settings == ("tls_ca", "tls_certificate", "tls_key")


def test_workers_look_at_a_file_that_can_be_read(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("nowhere")
    assert sample_of(find_scans(tmp_path)) is None
    (tmp_path / "patient").mkdir()
    scan = tmp_path / "patient" / "c.nii.gz"
    scan.write_bytes(b"12345")
    expected = Sample(scan, 5, str(scan))
    assert sample_of(find_scans(tmp_path, recursive=True)) == sample_of(find_scans(scan)) == expected


def test_versions_that_differ_are_told():
    ours = {"host": {"python": "3.11.7.final.0"}, "packages": {"ctseg": "0.1.0"}}
    assert _version_problem({"host": {"python": "3.11.2.final.0"}, "packages": {"ctseg": "0.1.0"}}, ours) is None
    told = _version_problem({"host": {"python": "3.12.1.final.0"}, "packages": {"ctseg": "0.2.0"}}, ours)
    assert told == "has ctseg 0.2.0 on Python 3.12, this client ctseg 0.1.0 on Python 3.11: install the same on all"
    told = _version_problem({"host": {"python": "3.11.2.final.0"}, "packages": {"ctseg": None}}, ours)
    assert told is not None
    assert told.startswith("has no ctseg on Python 3.11")
