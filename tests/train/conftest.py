"""One small data set, created, planned and preprocessed once by ctseg's own commands."""

from pathlib import Path

import pytest

from tests.support.tiny_trainings import TinyNnunet, make_tiny


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory: pytest.TempPathFactory) -> TinyNnunet:
    return make_tiny(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture
def tiny(tiny_prepared: TinyNnunet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyNnunet:
    """The data set with empty results of its own; this process has the environment, too."""
    for name in ("raw", "preprocessed"):
        (tmp_path / name).symlink_to(tiny_prepared.root / name)
    (tmp_path / "results").mkdir()
    tiny = TinyNnunet(tmp_path)
    for name, value in tiny.environment.items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    return tiny
