"""What the serving image's entry point decides, without a container."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from ctseg.errors import SetupError
from ctseg.serving.entries import read_entry
from tests.container.programs import FOLDER, load
from tests.support.toy_models import write_toy_entry

entrypoint = load("entrypoint")


def settings(**changes: str):
    return entrypoint.Settings.from_environment(changes)


def entry(backend: str = "python", batch: int = 4, versions: tuple[int, ...] = (1,), folder: Path = Path("/models/m")):
    spec = SimpleNamespace(
        patch_size=(8, 16, 16),
        channels=("CT",),
        num_heads=2,
        max_batch_size=batch,
        input=SimpleNamespace(dtype="FP32"),
        output=SimpleNamespace(dtype="FP16"),
    )
    items = tuple(SimpleNamespace(version=number, folder=folder / str(number), spec=spec) for number in versions)
    return SimpleNamespace(name=folder.name, folder=folder, backend=backend, versions=items, newest=items[-1])


def flags_of(changes: dict[str, str], help_text: str = "", backend: str = "python") -> list[str]:
    return entrypoint.server_flags(settings(**changes), Path("/models"), [entry(backend)], help_text)


def test_admin_protocols_ask_for_a_key_on_both_endpoints_and_reading_does_not() -> None:
    flags = flags_of({})
    grpc = next(flag for flag in flags if flag.startswith("--grpc-restricted-protocol="))
    http = next(flag for flag in flags if flag.startswith("--http-restricted-api="))
    for flag in (grpc, http):
        closed, _, key = flag.partition("=")[2].partition(":")
        assert closed.split(",") == ["model-repository", "trace", "logging", "shared-memory"]
        assert key.startswith("ctseg-admin=")
    assert grpc.partition("=")[2] == http.partition("=")[2]


def test_without_a_key_file_nobody_knows_the_key() -> None:
    first, second = settings().admin_key, settings().admin_key
    assert first != second
    assert len(first) == 64


def test_model_control_is_off_unless_asked_for() -> None:
    assert "--model-control-mode=none" in flags_of({})
    assert not any(flag.startswith("--load-model") for flag in flags_of({}))
    explicit = flags_of({"CTSEG_MODEL_CONTROL": "explicit"})
    assert "--model-control-mode=explicit" in explicit
    assert [flag for flag in explicit if flag.startswith("--load-model")] == ["--load-model=m"]


def test_http_stays_on_the_loopback_interface() -> None:
    assert "--http-address=127.0.0.1" in flags_of({})


def test_flags_that_an_old_server_does_not_know_are_left_out() -> None:
    assert not any("client-shm" in flag or "max-input-size" in flag for flag in flags_of({}))
    new = flags_of({}, "--allow-client-shm <boolean>\n --http-max-input-size")
    assert "--allow-client-shm=false" in new
    assert "--http-max-input-size=2147483647" in new


def test_pools_are_raised_for_tensorrt_only() -> None:
    assert any("pinned-memory-pool" in flag for flag in flags_of({}, backend="tensorrt"))
    assert not any("pinned-memory-pool" in flag for flag in flags_of({}))


def test_tls_needs_its_files_and_passes_them_on(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"CTSEG_TLS=server: .*tls\.crt cannot be read"):
        settings(CTSEG_TLS="server", CTSEG_TLS_FOLDER=str(tmp_path))
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text("x")
    assert "--grpc-use-ssl=true" in flags_of({"CTSEG_TLS": "server", "CTSEG_TLS_FOLDER": str(tmp_path)})
    with pytest.raises(SetupError, match=r"ca\.crt"):
        settings(CTSEG_TLS="mutual", CTSEG_TLS_FOLDER=str(tmp_path))
    (tmp_path / "ca.crt").write_text("x")
    mutual = flags_of({"CTSEG_TLS": "mutual", "CTSEG_TLS_FOLDER": str(tmp_path)})
    assert "--grpc-use-ssl-mutual=true" in mutual
    assert f"--grpc-root-cert={tmp_path}/ca.crt" in mutual


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CTSEG_TLS", "on"), ("CTSEG_BACKEND", "torch"), ("CTSEG_MODEL_CONTROL", "poll"), ("CTSEG_EXIT_TIMEOUT_S", "0")],
)
def test_a_wrong_setting_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(SetupError, match=f"{variable}={value}: expected"):
        settings(**{variable: value})


@pytest.mark.parametrize("key", ["short", "two words that are long enough", "a=b:c,dddddddddddddddd"])
def test_a_key_that_tritons_flag_would_misread_is_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    with pytest.raises(SetupError, match="expected one word") as refusal:
        settings(CTSEG_ADMIN_KEY_FILE=str(file))
    assert key not in str(refusal.value)


def test_shared_memory_for_a_full_batch_of_each_instance() -> None:
    voxels = 8 * 16 * 16
    assert entrypoint.shared_memory_needed(entry(), 2) == 2 * (4 * voxels * (4 + 2 * 2) + (16 << 20))
    assert entrypoint.shared_memory_needed(entry("tensorrt"), 2) == 0


def test_bundles_are_the_folder_itself_or_the_folders_in_it(tmp_path: Path) -> None:
    assert entrypoint.find_bundles(tmp_path / "missing") == []
    for name in ("b", "a", ".unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ctseg.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert entrypoint.find_bundles(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert entrypoint.find_bundles(tmp_path / "a") == [tmp_path / "a"]


def built(root: Path, *builds: dict[str, str], backend: str = "tensorrt"):
    """A model with a version for each build."""
    folder = root / "m"
    for number in range(1, len(builds) + 1):
        (folder / str(number)).mkdir(parents=True)
    (folder / "config.pbtxt").write_text("x")
    made = entry(backend, versions=tuple(range(1, len(builds) + 1)), folder=folder)
    for version, build in zip(made.versions, builds, strict=True):
        version.build = build
        (version.folder / "build.json").write_text(json.dumps(build))
    return made


def seen(view: Path) -> list[str]:
    return sorted(path.name for path in (view / "m").iterdir() if path.is_dir())


L4, RTX, OLD = ({"tensorrt": "11.2", "gpu": "L4"}, {"tensorrt": "11.2", "gpu": "RTX"}, {"tensorrt": "10", "gpu": "L4"})


@pytest.mark.parametrize(
    ("builds", "fitting", "served"),
    [
        ([L4, L4, L4], None, ["2", "3"]),
        ([OLD, L4], None, ["2"]),  # a plan of another TensorRT would end the server
        ([L4, RTX], 1, ["1"]),
        ([L4, RTX], 2, ["2"]),
        ([L4, RTX, L4], 3, ["3"]),
    ],
)
def test_a_server_sees_the_plans_for_its_machine(
    tmp_path: Path, builds: list[dict[str, str]], fitting: int | None, served: list[str]
) -> None:
    entries = [built(tmp_path / "models", *builds)]
    known = {} if fitting is None else {"m": fitting}
    for grows in (False, True):
        assert seen(entrypoint.served_view(entries, tmp_path / "view", known, grows=grows)) == (
            served if not grows or len(served) < 2 else ["1", "2", "3"]
        )
        assert (tmp_path / "view" / "m" / "config.pbtxt").read_text() == "x"


def test_the_view_holds_models_only_and_under_model_control_their_later_versions(tmp_path: Path) -> None:
    (tmp_path / "models" / "lost+found").mkdir(parents=True)
    entries = [built(tmp_path / "models", L4, L4)]
    for grows, expected in ((False, ["1", "2"]), (True, ["1", "2", "3"])):
        view = entrypoint.served_view(entries, tmp_path / "view", {}, grows=grows)
        assert [path.name for path in view.iterdir()] == ["m"]
        (tmp_path / "models" / "m" / "3").mkdir(exist_ok=True)
        assert seen(view) == expected


def test_plans_for_all_gpus_of_the_newest_version_are_asked_of_the_one_before(tmp_path: Path) -> None:
    model = built(tmp_path / "models", L4, L4)
    (model.newest.folder / "build_sm90.json").write_text(json.dumps({"tensorrt": "11.2", "gpu": "H100"}))
    assert [item.version for item in entrypoint.served_versions(model, None)] == [2]


def test_two_versions_for_each_machine_are_kept(tmp_path: Path) -> None:
    def old(*builds: dict[str, str], backend: str = "tensorrt") -> list[int]:
        shutil.rmtree(tmp_path / "models", ignore_errors=True)
        return [item.version for item in entrypoint.superseded(built(tmp_path / "models", *builds, backend=backend))]

    assert old(L4, RTX, L4, RTX) == []
    assert old(L4, RTX, L4, RTX, L4) == [1]
    assert old(OLD, L4, L4) == [1]
    here, there = {"machine": {"cpus": 2}}, {"machine": {"cpus": 8}}
    assert old(here, there, here, here, backend="python") == [1]  # type: ignore[arg-type]


HOLDER = """
import sys, time
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from ctseg.serving.entries import read_entry
from tests.container.programs import load
entry = read_entry(Path(sys.argv[1]))
load("entrypoint").hold([entry.versions[int(sys.argv[2])]])
import os
os.execvp("sh", ["sh", "-c", "echo held; exec sleep 60"])
"""


def test_versions_that_a_running_server_may_serve_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for number in (1, 2, 3, 4, 5):
        write_toy_entry(root, version=number, build_info={"machine": "same"})
    (root / f".ctseg-staging-{root.name}-killed").mkdir()

    def versions_after_tidying() -> list[int]:
        entrypoint.tidy(settings(CTSEG_MODELS=str(root)), [read_entry(root / "toy")])
        return [item.version for item in read_entry(root / "toy").versions]

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root / "toy"), "1", *sys.path], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert versions_after_tidying() == [2, 3, 4, 5]  # 3 too: it may have been loaded since
    holder.kill()
    holder.wait(30)
    holder.stdout.close()
    assert versions_after_tidying() == [4, 5]


def started(code: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
    variables = {**os.environ, **environment}
    return subprocess.Popen([sys.executable, code, *words], stderr=subprocess.PIPE, text=True, env=variables)


def test_a_server_that_waits_for_another_one_ends_at_sigterm(tmp_path: Path) -> None:
    for name in ("models", "bundle"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundle" / "ctseg.json").write_text("{}")
    with FileLock(tmp_path / "models" / ".ctseg-start.lock"):
        folders = {"CTSEG_MODELS": str(tmp_path / "models"), "CTSEG_BUNDLES": str(tmp_path / "bundle")}
        server = started(str(FOLDER / "entrypoint.py"), **folders)
        assert server.stderr is not None
        assert "waiting for another server" in server.stderr.readline()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 128 + signal.SIGTERM  # by a handler: the first process of a container has no other
        server.stderr.close()


CHILD = """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    time.sleep(1)
    Path(sys.argv[1]).write_text("cleaned up")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("building", file=sys.stderr, flush=True)
time.sleep(60)
"""
PARENT = """
import sys
sys.path[:0] = sys.argv[3:]
from tests.container.programs import load
entrypoint = load("entrypoint")
entrypoint.end_by_signals()
entrypoint.run_child([sys.executable, *sys.argv[1:3]], keep_last_line=True)
"""


def test_a_build_may_clean_up_before_the_container_ends(tmp_path: Path) -> None:
    for name, code in (("parent.py", PARENT), ("child.py", CHILD)):
        (tmp_path / name).write_text(code)
    parent = started(*(str(tmp_path / name) for name in ("parent.py", "child.py", "done")), *sys.path)
    assert parent.stderr is not None
    assert parent.stderr.readline() == "building\n"
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 128 + signal.SIGTERM
    parent.stderr.close()
    assert (tmp_path / "done").read_text() == "cleaned up"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; `make images` checks it as another user")
def test_a_repository_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SetupError, match="chown"):
        entrypoint.require_writable(tmp_path)
