"""The tritonserver of this machine is found, or it is said what is missing."""

import sys

import pytest

from ctseg.errors import SetupError
from ctseg.serving.installation import find_server


@pytest.mark.live
@pytest.mark.skipif(sys.platform != "linux", reason="the embedded server is for Linux")
def test_the_flags_of_the_installed_server_are_found() -> None:
    flags = find_server().supported_flags()
    assert {"--grpc-restricted-protocol", "--disable-auto-complete-config", "--model-repository"} <= flags


def test_other_systems_are_told_to_use_a_server_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(SetupError, match=r"Linux only, this is Windows.*a server elsewhere") as caught:
        find_server()
    assert caught.value.settings == ("urls",)
