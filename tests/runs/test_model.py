"""Where a model runs: one of two ways, told before anything is started."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from ctseg.errors import InferenceFailedError, ServerAwayError, SetupError
from ctseg.runs.model import ServedModel, opened
from ctseg.triton.configuration import spec_parameter
from tests.support.live_triton import ANSWER
from tests.support.toy_models import toy_logits, toy_patches, toy_spec, write_foreign_entry, write_toy_entry


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


@pytest.mark.live
@pytest.mark.skipif(sys.platform != "linux", reason="the embedded server is for Linux")
def test_a_run_goes_on_when_its_servers_stub_is_killed_and_ends_at_once_when_nobody_keeps_the_server(
    tmp_path: Path,
) -> None:
    write_toy_entry(tmp_path / "models")
    patches = toy_patches(2)
    with opened(ServedModel("toy", repository=tmp_path / "models")) as predictor:
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        (server,) = (c for c in psutil.Process().children(recursive=True) if c.name() == "tritonserver")
        supervisor = server.parent()
        next(child for child in server.children() if child.name().startswith("triton_python")).kill()
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        supervisor.kill()

        def answer_until_it_is_heard() -> None:
            while True:
                np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)

        with pytest.raises(ServerAwayError, match="toy: the server that was started for this run has ended"):
            answer_until_it_is_heard()


@pytest.mark.live
@pytest.mark.skipif(sys.platform != "linux", reason="the embedded server is for Linux")
@pytest.mark.parametrize("victim", ["os.getppid()", "os.getpid()"], ids=["server", "stub"])
def test_windows_that_kill_the_server_fail_and_the_others_are_computed(tmp_path: Path, victim: str) -> None:
    code = f"if patches[0, 0, 0, 0, 0] == 77: import os; os.kill({victim}, 9); time.sleep(60)\n{ANSWER}"
    write_foreign_entry(tmp_path / "models", "toy", code, parameters={spec_parameter(1): toy_spec("toy").to_json()})
    patches, deadly = toy_patches(1), toy_patches(1)
    deadly[0, 0, 0, 0, 0] = 77
    with (
        opened(ServedModel("toy", repository=tmp_path / "models")) as predictor,
        ThreadPoolExecutor(4) as pool,
    ):
        requests = [pool.submit(predictor.predict, window) for window in (deadly, deadly, patches, patches)]
        for request in requests[:2]:
            with pytest.raises(InferenceFailedError):
                request.result()
        for request in requests[2:]:
            np.testing.assert_allclose(request.result(), toy_logits(patches), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".x", "-x", "é", "a\n", "x" * 129])
def test_a_name_that_leads_elsewhere_is_no_name_of_a_model(name: str) -> None:
    with pytest.raises(SetupError, match="no name of a model") as caught:
        ServedModel(name, urls=("gpu1:8001",))
    assert caught.value.settings == ("model",)
