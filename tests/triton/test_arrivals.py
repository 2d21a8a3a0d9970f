"""The first contact with several servers: who answers begins, who comes later gets work, too."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ctseg.errors import ModelNotFoundError, ServerUnavailableError, SetupError
from ctseg.model_spec import KeepLargest
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from tests.support.live_triton import free_port, wait_for
from tests.support.toy_models import toy_logits, toy_patches, toy_spec, write_toy_entry

PATIENT = ClientOptions(connect_timeout_s=240)


@contextlib.contextmanager
def toy_server(folder: Path, port: int, **changes: object) -> Iterator[RunningServer]:
    folder.mkdir()
    write_toy_entry(folder / "models", toy_spec(**changes))
    with embedded_server(
        folder / "models", options=ServerOptions(is_private=False, prove=False, grpc_port=port)
    ) as server:
        yield server


@pytest.mark.live
def test_one_dead_server_keeps_nobody_waiting_and_gets_work_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dead, alive = free_port(), free_port()
    patches = toy_patches(1)
    with toy_server(tmp_path / "one", alive) as server, contextlib.ExitStack() as stack:
        predictor = stack.enter_context(connect([f"127.0.0.1:{dead}", server.url], "toy", options=PATIENT))
        assert f"127.0.0.1:{dead} does not answer yet: the work begins without it" in caplog.text
        assert predictor.urls == (f"127.0.0.1:{dead}", server.url)
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        assert predictor.max_in_flight == 2
        inference = InferenceQueue(predictor)
        stack.callback(inference.close)
        with toy_server(tmp_path / "two", dead):
            wait_for(lambda: predictor.max_in_flight == 4)
            assert f"127.0.0.1:{dead} has come and gets work, too" in caplog.text
            for future in [inference.submit(patches, priority=0) for _ in range(20)]:
                np.testing.assert_allclose(future.result(240), toy_logits(patches), rtol=1e-6, atol=1e-6)
            assert len(inference.threads._threads) == 4
            assert all(server.last_answer > 0 for server in predictor._rota.servers)
            inference.close()


@pytest.mark.live
def test_a_server_that_comes_later_with_another_model_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead, alive = free_port(), free_port()
    with (
        toy_server(tmp_path / "one", alive) as server,
        connect([f"127.0.0.1:{dead}", server.url], "toy", options=PATIENT) as predictor,
        toy_server(tmp_path / "two", dead, postprocessing=(KeepLargest(labels=(1,)),)),
    ):
        wait_for(lambda: f"127.0.0.1:{dead} has come and is not used: toy: " in caplog.text)
        assert [known.url for known in predictor._rota.servers] == [server.url]
        predictor.predict(toy_patches(1))


@pytest.mark.live
def test_a_server_without_the_model_is_refused_at_once(tmp_path: Path) -> None:
    dead, alive = free_port(), free_port()
    with toy_server(tmp_path / "one", alive) as server, pytest.raises(ModelNotFoundError, match="nowhere at"):
        connect([f"127.0.0.1:{dead}", server.url], "nowhere", options=PATIENT)


def test_an_address_that_cannot_be_used_is_refused_at_once_whoever_else_is_waited_for(tmp_path: Path) -> None:
    options = ClientOptions(connect_timeout_s=240, root_certificates=tmp_path / "none.pem")
    with pytest.raises(SetupError, match="cannot be read"):
        connect([f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"], "toy", options=options)


def test_where_nobody_answers_the_first_is_named_after_the_time_that_was_given() -> None:
    first, second = free_port(), free_port()
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=rf"toy at 127.0.0.1:{first}: cannot be used.*refused"):
        connect([f"127.0.0.1:{first}", f"127.0.0.1:{second}"], "toy", options=ClientOptions(connect_timeout_s=1))
    assert time.monotonic() - started >= 1
