"""Which version of a model is used, and whether its spec fits what the server has."""

import numpy as np
import pytest

from ctseg.errors import ModelNotFoundError, RequestRejectedError, SpecError
from ctseg.model_spec import KeepLargest
from ctseg.serving.process import RunningServer
from ctseg.triton.errors import NOT_FOUND, RESTRICTED, UNAVAILABLE, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from ctseg.triton.served_version import WantedModel, choose_version
from tests.support.fake_triton import FakeClient
from tests.support.live_triton import connected
from tests.support.toy_models import toy_logits, toy_patches, toy_spec

CHANGED = toy_spec(postprocessing=(KeepLargest(labels=(1,)),))


def test_the_newest_version_is_taken_unless_one_is_named() -> None:
    client = FakeClient(specs={1: toy_spec(), 3: CHANGED, 2: toy_spec()})
    newest = choose_version(client, WantedModel("toy"), 60)
    assert (newest.version, newest.spec) == (3, CHANGED)
    named = choose_version(client, WantedModel("toy", 1), 60)
    assert (named.version, named.spec, named.max_batch_size, named.instances) == (1, toy_spec(), 4, 1)


def test_a_server_that_is_not_ready_yet_is_waited_for() -> None:
    client = FakeClient()
    client.failures["get_model_metadata"] = [CallError(UNAVAILABLE, "starting"), CallError(UNAVAILABLE, "starting")]
    assert choose_version(client, WantedModel("toy"), 600).version == 1
    assert client.asked == ["get_model_metadata"] * 4 + ["get_model_config"]  # versions, thrice; then version 1


def test_a_server_that_never_gets_ready_is_given_up() -> None:
    client = FakeClient()
    client.gone = CallError(UNAVAILABLE, "connection refused")
    with pytest.raises(CallError, match="connection refused") as caught:
        choose_version(client, WantedModel("toy"), 0.3)
    assert caught.value.status == UNAVAILABLE
    assert len(client.asked) >= 1


def test_a_refusal_is_not_repeated() -> None:
    client = FakeClient()
    client.gone = CallError(RESTRICTED, "a key, please")
    with pytest.raises(CallError, match="a key, please"):
        choose_version(client, WantedModel("toy"), 3)
    assert client.asked == ["get_model_metadata"]


@pytest.mark.live
def test_a_missing_key_is_a_refusal(server: RunningServer) -> None:
    with pytest.raises(RequestRejectedError, match="restricted") as caught:
        connect([server.url], "toy")
    assert caught.value.settings == ("headers",)


@pytest.mark.live
def test_a_model_without_a_spec_says_how_to_get_one(server: RunningServer) -> None:
    with (
        pytest.raises(SpecError, match=r"no_spec version 1 .*ctseg build.*as a file") as caught,
        connected(server, "no_spec"),
    ):
        pass
    assert caught.value.settings == ("spec",)


@pytest.mark.live
def test_a_spec_from_a_file_serves_where_the_server_has_none(server: RunningServer) -> None:
    patches = toy_patches(2)
    options = ClientOptions(headers=server.headers)
    with connect([server.url], "no_spec", spec=toy_spec("no_spec"), options=options) as predictor:
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)


@pytest.mark.live
def test_a_spec_from_a_file_that_contradicts_the_server_names_both(server: RunningServer) -> None:
    spec = toy_spec("no_spec", patch_size=(6, 10, 16))
    with pytest.raises(SpecError, match=r"6, 10, 16.*the server has.*6, 10, 14") as caught:
        connect([server.url], "no_spec", spec=spec, options=ClientOptions(headers=server.headers))
    assert caught.value.settings == ("spec",)


@pytest.mark.live
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("nowhere", ModelNotFoundError, r"nowhere at 127.*NOT_FOUND.*unknown model"),
        ("future", SpecError, r"future version 1 at 127.*schema_version 99 is unknown"),
        ("other_heads", SpecError, r"lists 3 labels and expects the output .*3, 6, 10, 14.* has .*4, 6, 10, 14"),
        ("misnamed", SpecError, r"of a model named 'toy'"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_by_name(
    server: RunningServer, model: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), connected(server, model):
        pass


@pytest.mark.live
def test_a_version_that_is_not_there_is_named(server: RunningServer) -> None:
    with pytest.raises(ModelNotFoundError, match="version 7"):
        connect([server.url], "toy", version=7, options=ClientOptions(headers=server.headers))


def test_a_server_that_stops_is_waited_for_at_the_first_contact_and_one_that_lacks_the_model_is_not() -> None:
    missing = CallError(NOT_FOUND, "Request for unknown model: 'toy' has no available versions")
    stopping = FakeClient()
    stopping.failures = {"get_model_metadata": [missing], "is_server_live": [CallError(UNAVAILABLE, "Server exiting")]}
    assert choose_version(stopping, WantedModel("toy"), 240).version == 1
    lacking = FakeClient()
    lacking.failures = {"get_model_metadata": [missing]}
    with pytest.raises(CallError, match="NOT_FOUND"):
        choose_version(lacking, WantedModel("toy"), 240)
