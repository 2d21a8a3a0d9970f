"""The variables of the container: what is taken, and what is refused by name."""

from pathlib import Path

import pytest

from ctseg.errors import SetupError
from tests.support.container_entries import settings_of


def test_without_variables_the_defaults_of_the_image_hold() -> None:
    settings = settings_of()
    assert (settings.bundles, settings.models) == (Path("/bundles"), Path("/models"))
    assert (settings.backend, settings.precision, settings.tls, settings.explicit) == ("tensorrt", "fp32", "off", False)
    assert (settings.exit_timeout_s, settings.lock_timeout_s) == (25, 3600)
    assert settings.tls_files == {}


def test_an_empty_variable_counts_as_none() -> None:
    assert settings_of(CTSEG_BACKEND="", CTSEG_EXIT_TIMEOUT_S="", CTSEG_BUILD_OPTIONS="") == settings_of()


def test_without_a_key_file_nobody_knows_the_key() -> None:
    first, second = settings_of(), settings_of()
    assert first.admin_key == first.admin_key
    assert first.admin_key != second.admin_key
    assert len(first.admin_key) == 64


def test_the_key_of_a_file_is_taken_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("correct-horse-battery\n")
    settings = settings_of(CTSEG_ADMIN_KEY_FILE=str(tmp_path / "key"))
    assert settings.admin_key == "correct-horse-battery"
    assert "correct" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CTSEG_TLS", "on"),
        ("CTSEG_BACKEND", "torch"),
        ("CTSEG_HTTP", "on"),
        ("CTSEG_MODEL_CONTROL", "poll"),
        ("CTSEG_EXIT_TIMEOUT_S", "0"),
        ("CTSEG_LOCK_TIMEOUT_S", "soon"),
        ("CTSEG_SCAN_MEMORY_GB", "0"),
        ("CTSEG_SCAN_SHARED_MEMORY_MB", "much"),
        ("CTSEG_SCAN_LANES", "65"),
        ("CTSEG_SCAN_MOST_WAITING", "0"),
        ("CTSEG_SCAN_MOST_WINDOWS", "2000000"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(SetupError, match=f"{variable}={value}: expected"):
        settings_of(**{variable: value})


def test_http_is_no_way_round_tls(tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text("x")
    assert settings_of(CTSEG_HTTP="open").http == "open"
    with pytest.raises(SetupError, match=r"CTSEG_HTTP=open: .*CTSEG_TLS=server: expected inside"):
        settings_of(CTSEG_HTTP="open", CTSEG_TLS="server", CTSEG_TLS_FOLDER=str(tmp_path))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as refusal:
        settings_of(
            CTSEG_BACKEND="torch",
            CTSEG_TLS="server",
            CTSEG_TLS_FOLDER=str(tmp_path),
            CTSEG_ADMIN_KEY_FILE=str(tmp_path / "key"),
            CTSEG_BUILD_OPTIONS="--threads many",
        )
    text = str(refusal.value)
    for part in (
        "CTSEG_BACKEND=torch: expected 'python', 'onnxruntime' or 'tensorrt'",
        f"CTSEG_TLS=server: {tmp_path}/tls.crt cannot be read",
        f"{tmp_path}/tls.key cannot be read",
        f"CTSEG_ADMIN_KEY_FILE: {tmp_path}/key cannot be read",
        "CTSEG_BUILD_OPTIONS=--threads many: --threads=many: expected a valid integer",
    ):
        assert part in text


def test_tls_needs_its_files(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"CTSEG_TLS=server: .*tls\.crt cannot be read"):
        settings_of(CTSEG_TLS="server", CTSEG_TLS_FOLDER=str(tmp_path))
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text("x")
    assert len(settings_of(CTSEG_TLS="server", CTSEG_TLS_FOLDER=str(tmp_path)).tls_files) == 2
    with pytest.raises(SetupError, match=r"ca\.crt"):
        settings_of(CTSEG_TLS="mutual", CTSEG_TLS_FOLDER=str(tmp_path))


@pytest.mark.parametrize("key", ["short", "two words that are long enough", "a=b:c,dddddddddddddddd"])
def test_a_key_that_tritons_flag_would_misread_is_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    with pytest.raises(SetupError, match="expected one word") as refusal:
        settings_of(CTSEG_ADMIN_KEY_FILE=str(file))
    assert key not in str(refusal.value)


def test_the_words_of_a_build_win_over_backend_and_precision() -> None:
    words = settings_of(CTSEG_BACKEND="python", CTSEG_PRECISION="fp16").build_words
    assert (words.backend, words.precision, words.if_needed) == ("python", "fp16", True)
    words = settings_of(CTSEG_BACKEND="python", CTSEG_BUILD_OPTIONS="--precision bf16 --runtime openvino").build_words
    assert (words.backend, words.precision, words.runtime) == ("python", "bf16", "openvino")
