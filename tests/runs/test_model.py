"""Where a model runs: one of two ways, told before anything is started."""

from pathlib import Path

import pytest

from ctseg.errors import SetupError
from ctseg.runs.model import ServedModel, opened


@pytest.mark.parametrize("given", [{}, {"urls": ("gpu1:8001",), "repository": Path("models")}])
def test_a_model_has_servers_or_a_repository(given: dict) -> None:
    with pytest.raises(SetupError, match=r"liver: .*give one of the two") as caught:
        ServedModel("liver", **given)
    assert caught.value.settings == ("urls", "repository")


def test_a_missing_repository_is_told_before_a_server_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctseg.runs.model.embedded_server", lambda *_: pytest.fail("a server was started"))
    with (
        pytest.raises(SetupError, match=f"no model repository at {tmp_path / 'none'}"),
        opened(ServedModel("liver", repository=tmp_path / "none")),
    ):
        pass
