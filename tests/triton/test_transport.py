"""The same logits by message and by shared memory; and memory that never stays behind."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ctseg.errors import InferenceFailedError, SetupError
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.triton import shared_memory
from ctseg.triton.errors import INTERNAL, NOT_FOUND, RESTRICTED, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor
from ctseg.triton.transport import SEGMENT_PREFIX, batch_limit
from tests.support.fake_triton import FakeClient, fake_connection
from tests.support.live_triton import connected, wait_for
from tests.support.toy_models import toy_logits, toy_patches, toy_spec, write_toy_entry

live = pytest.mark.live


def test_large_windows_travel_alone() -> None:
    small, medium, large = (toy_spec(patch_size=size) for size in ((32, 64, 64), (96, 160, 160), (160, 256, 256)))
    assert batch_limit(small, 2**31 - 1) == (128 << 20) // (3 * 32 * 64 * 64 * 4)
    assert batch_limit(medium, 2**31 - 1) == 4, "3 heads of 9.8 MB each: four windows are less than 128 MiB"
    assert batch_limit(large, 2**31 - 1) == 1


@live
def test_the_batch_stays_under_the_message_size(server: RunningServer) -> None:
    answer = toy_logits(toy_patches(1)).nbytes
    with connected(server, max_message_bytes=2 * answer + 5000) as predictor:
        assert predictor.max_batch_size == 2
    with pytest.raises(SetupError, match=r"one patch .* 3 heads takes"), connected(server, max_message_bytes=answer):
        pass


@live
@pytest.mark.parametrize("transport", ["on", "off"])
def test_the_logits_are_those_of_the_network(server: RunningServer, transport: str) -> None:
    patches = toy_patches(3)
    with connected(server, shared_memory=transport) as predictor:
        assert predictor.identity.transport == {"on": "shared memory", "off": "grpc"}[transport]
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        assert predictor.bytes_sent == patches.nbytes
        assert predictor.bytes_received == patches.nbytes * 3 // 2  # two channels in, three heads out


@live
def test_fp16_answers_come_as_float32_and_are_half_the_bytes(server: RunningServer) -> None:
    patches = toy_patches(2)
    with connected(server, "half") as predictor:
        logits = predictor.predict(patches)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, toy_logits(patches), rtol=2e-3, atol=5e-3)
        assert predictor.bytes_received == logits.nbytes // 2


@live
def test_shared_memory_and_grpc_give_the_same_bits(server: RunningServer) -> None:
    patches = toy_patches(4)
    with connected(server, shared_memory="on") as one, connected(server, shared_memory="off") as other:
        np.testing.assert_array_equal(one.predict(patches), other.predict(patches))


@live
def test_answers_that_are_held_do_not_block_further_requests(server: RunningServer) -> None:
    size = toy_logits(toy_patches(1)).nbytes
    with connected(server, shared_memory="on", max_shared_memory_bytes=4 * size + 4096) as predictor:
        patches = [toy_patches(1, seed) for seed in range(12)]
        held = [predictor.predict(item) for item in patches]
        for item, logits in zip(patches, held, strict=True):
            np.testing.assert_allclose(logits, toy_logits(item), rtol=1e-6, atol=1e-6)


@live
def test_an_answer_stays_readable_after_close(server: RunningServer) -> None:
    patches = toy_patches(2)
    with connected(server, shared_memory="on") as predictor:
        logits = predictor.predict(patches)
    np.testing.assert_allclose(logits, toy_logits(patches), rtol=1e-6, atol=1e-6)


@live
def test_shared_memory_is_gone_after_close(server: RunningServer) -> None:
    before = _regions(server)  # of tests that gave up their server
    with connected(server, shared_memory="on") as predictor:
        predictor.predict(toy_patches(2))
        assert list(shared_memory.FOLDER.glob(f"{SEGMENT_PREFIX}*-{os.getpid()}-*"))
        assert len(_regions(server) - before) >= 2
    assert _regions(server) <= before
    assert not list(shared_memory.FOLDER.glob(f"{SEGMENT_PREFIX}*-{os.getpid()}-*"))


@pytest.mark.parametrize("token", ["40230067", "4023006a"])
def test_a_segment_of_a_dead_process_is_swept_whatever_its_random_name(token: str) -> None:
    code = (
        "from ctseg.triton import shared_memory; import os\n"
        f"shared_memory.secrets.token_hex = lambda _: {token!r}\n"
        "s = shared_memory.Segment('ctseg-test-', 4096); print(s.name, flush=True); os._exit(0)"
    )
    name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert shared_memory.sweep("ctseg-test-") == [name]
    assert not (shared_memory.FOLDER / name).exists()


@live
def test_shared_memory_of_a_killed_client_goes_with_the_next_client(server: RunningServer) -> None:
    code = (
        "from ctseg.triton import shared_memory; import sys\n"
        f"s = shared_memory.Segment({SEGMENT_PREFIX!r}, 4096); print(s.name, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    with connected(server):
        assert (shared_memory.FOLDER / name).exists()  # its owner lives
    process.kill()
    process.communicate()
    with connected(server):
        assert not (shared_memory.FOLDER / name).exists()


@live
def test_a_region_that_the_server_lost_is_made_known_again(server: RunningServer) -> None:
    patches = toy_patches(2)
    with connected(server, shared_memory="on") as predictor:
        predictor.predict(patches)
        wait_for(lambda: _unregister_all(server))
        for _ in range(3):
            np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        assert predictor.identity.transport == "shared memory"


def test_shared_memory_that_was_asked_for_and_is_not_to_be_had_is_an_error_that_leaves_none() -> None:
    client = FakeClient()
    client.failures["register_system_shared_memory"] = [CallError(RESTRICTED, "closed")]
    with pytest.raises(
        SetupError, match=r"toy: shared memory is not to be had: 127.0.0.1:1: restricted: closed"
    ) as caught:
        TritonPredictor([fake_connection(client)], ClientOptions(shared_memory="on"))
    assert caught.value.settings == ("shared_memory",)
    assert not list(shared_memory.FOLDER.glob(f"{SEGMENT_PREFIX}*-{os.getpid()}-*"))


def test_memory_of_a_failed_request_is_not_used_again_and_the_server_forgets_it() -> None:
    client = FakeClient()
    client.failures["infer"] = [CallError(INTERNAL, "out of luck")] * 3
    with TritonPredictor([fake_connection(client)], ClientOptions()) as predictor:
        with pytest.raises(InferenceFailedError, match="out of luck"):
            predictor.predict(toy_patches(1))
        left = list(shared_memory.FOLDER.glob(f"{SEGMENT_PREFIX}*-{os.getpid()}-*"))
        assert len(left) == 1  # the one that tried the server
    assert client.asked.count("register_system_shared_memory") == 1 + 3 * 2  # patches and logits, three times
    assert client.asked.count("unregister_system_shared_memory") == 1 + 3 * 2


def test_a_server_that_takes_no_shared_memory_any_more_gets_messages() -> None:
    client = FakeClient(value=5.0)
    with TritonPredictor([fake_connection(client)], ClientOptions()) as predictor:
        for seed in range(3):  # as often as it is forgiven
            assert predictor.identity.transport == "shared memory"
            client.failures["register_system_shared_memory"] = [CallError(NOT_FOUND, "gone")]
            assert (predictor.predict(toy_patches(1, seed)) == 5.0).all()
        assert predictor.identity.transport == "grpc"
        assert predictor.retries == 0


@live
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="the trap is numpy 2's")
@pytest.mark.parametrize("transport", ["on", "off"])
def test_an_empty_answer_is_no_answer(server: RunningServer, transport: str) -> None:
    with connected(server, "empty", shared_memory=transport) as predictor, pytest.raises(InferenceFailedError):
        predictor.predict(toy_patches(1))


@live
@pytest.mark.parametrize("transport", ["on", "off"])
def test_the_answer_of_another_request_is_no_answer(tmp_path: Path, transport: str) -> None:
    write_toy_entry(tmp_path)
    model = tmp_path / "toy" / "1" / "model.py"
    model.write_text(model.read_text().replace("text = request.request_id()", 'text = "7"'))
    with (
        embedded_server(tmp_path, options=ServerOptions(prove=False)) as server,
        connected(server, shared_memory=transport) as predictor,
        pytest.raises(InferenceFailedError, match="the answer of another request came"),
    ):
        predictor.predict(toy_patches(1))


def _regions(server: RunningServer) -> set[str]:
    with InferenceServerClient(server.url) as client:
        return set(client.get_system_shared_memory_status(headers=server.headers).regions)


def _unregister_all(server: RunningServer) -> bool:
    with InferenceServerClient(server.url) as client, contextlib.suppress(InferenceServerException):
        client.unregister_system_shared_memory(headers=server.headers)  # refused while a request holds a region
    return not _regions(server)
