"""One small data set, created, planned and preprocessed once by ctseg's own commands."""

from pathlib import Path

import pytest

from tests.support.tiny_trainings import PlannedNnunet, TinyNnunet, make_planned, with_small_plans


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> PlannedNnunet:
    """The data set with the plans of nnU-Net's planner and of ctseg's."""
    return make_planned(tmp_path_factory.mktemp("planned"))


@pytest.fixture(scope="session")
def tiny_prepared(planned: PlannedNnunet, tmp_path_factory: pytest.TempPathFactory) -> TinyNnunet:
    """The same with small plans."""
    return with_small_plans(planned.tiny, tmp_path_factory.mktemp("nnunet"))


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
