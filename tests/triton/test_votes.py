"""Votes come behind the logits where they are asked for; where they are not, nothing is as if there were none."""

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from ctseg.serving.process import RunningServer
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor
from ctseg.triton.transport import batch_limit
from tests.support.fake_triton import FakeClient, fake_connection
from tests.support.live_triton import connected
from tests.support.predictor_contract import check_predictor
from tests.support.toy_models import toy_logits, toy_patches, toy_spec, toy_votes

live = pytest.mark.live


def message_of(**changes: object) -> list[bytes]:
    """What a client sends for two patches."""
    client = FakeClient(specs={1: toy_spec(**changes)})
    options = ClientOptions(shared_memory="off", connect_timeout_s=60)
    with TritonPredictor([fake_connection(client)], options) as predictor:
        predictor.predict(toy_patches(2))
    (message,) = client.messages
    return message


def test_a_request_without_votes_has_the_bytes_of_one_for_a_network_that_has_none() -> None:
    assert message_of(votes={"folds": 3}) == message_of()


def test_batches_come_back_with_votes_in_one_message_and_one_window_without_them_always_goes() -> None:
    spec, voting = toy_spec(), toy_spec(votes={"folds": 3})
    longest = 4096 + 4 * spec.logits_bytes
    assert batch_limit(spec, longest) == 4
    assert batch_limit(voting, longest) == 3, "a quarter more with each"
    assert batch_limit(voting, longest + 4 * voting.votes_bytes) == 4
    assert batch_limit(voting, 4096 + spec.logits_bytes) == 1
    assert batch_limit(voting, 2 << 30) == batch_limit(spec, 2 << 30), "no message limits them, and off costs nothing"


def answer_of(server: RunningServer, model: str, names: list[str]) -> tuple[list[tuple[str, str]], list[bytes]]:
    """Return what a server answers to two patches, byte by byte."""
    patches = toy_patches(2)
    tensor = InferInput("input", patches.shape, "FP32")
    tensor.set_data_from_numpy(patches)
    with InferenceServerClient(server.url) as client:
        result = client.infer(
            model, [tensor], outputs=[InferRequestedOutput(name) for name in names], headers=server.headers
        )
    response = result.get_response()
    return [(item.name, item.datatype) for item in response.outputs], list(response.raw_output_contents)


@live
def test_an_answer_without_votes_has_the_bytes_of_one_of_a_network_that_has_none(server: RunningServer) -> None:
    tensors, contents = answer_of(server, "voting", ["logits"])
    assert (tensors, contents) == answer_of(server, "toy", ["logits"])
    assert tensors == [("logits", "FP32")]
    with_votes, _ = answer_of(server, "voting", ["logits", "votes"])
    assert with_votes == [("logits", "FP32"), ("votes", "UINT8")]


@live
@pytest.mark.parametrize("transport", ["on", "off"])
@pytest.mark.parametrize("model", ["voting", "half_voting"])
def test_votes_are_shares_of_folds_behind_the_logits(server: RunningServer, transport: str, model: str) -> None:
    patches = toy_patches(3)
    with connected(server, model, shared_memory=transport) as predictor:
        logits = predictor.predict(patches).copy()
        before = predictor.bytes_received
        answer = predictor.predict(patches, votes=True)
        assert predictor.bytes_received - before == before + toy_votes(patches).size, "a byte for each vote"
    assert answer.shape == (3, 5, *patches.shape[2:]), "three heads, and votes for all but the background"
    np.testing.assert_array_equal(answer[:, :3], logits)
    is_clear = np.abs(toy_logits(patches)[:, 1:]) > 1e-2  # FP16 rounds what is near nothing
    np.testing.assert_array_equal(answer[:, 3:][is_clear], (toy_votes(patches)[:, 1:] / 3)[is_clear])


@live
def test_a_predictor_of_a_network_with_votes_keeps_the_contract(server: RunningServer) -> None:
    with connected(server, "voting") as predictor:
        check_predictor(predictor)


@live
def test_votes_of_a_network_without_them_are_the_callers_mistake(server: RunningServer) -> None:
    with connected(server) as predictor, pytest.raises(ValueError, match="toy: expected a network whose folds vote"):
        predictor.predict(toy_patches(1), votes=True)
