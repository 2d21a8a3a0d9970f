"""What the serving image's entry point decides, without a container."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctseg.errors import SetupError
from tests.images.programs import load

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
    explicit = flags_of({"CTSEG_MODEL_CONTROL": "explicit"})
    assert "--model-control-mode=explicit" in explicit
    assert "--load-model=*" in explicit


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


def test_only_the_newest_plan_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    for number in ("1", "2"):
        (folder / number).mkdir(parents=True)
    (folder / "config.pbtxt").write_text("x")
    for backend, served in (("tensorrt", ["2"]), ("python", ["1", "2"])):
        view = entrypoint.served_view([entry(backend, versions=(1, 2), folder=folder)], tmp_path / "view")
        assert sorted(path.name for path in (view / "m").iterdir()) == [*served, "config.pbtxt"]
        assert (view / "m" / "config.pbtxt").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; `make images` checks it as another user")
def test_a_repository_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SetupError, match="chown"):
        entrypoint.require_writable(tmp_path)
