"""One server: when it is trusted, what it still serves, and the memory that it knows."""

import math
from dataclasses import dataclass

import pytest

from ctseg.errors import ServerError, SpecError
from ctseg.model_spec import KeepLargest
from ctseg.triton.addresses import Address
from ctseg.triton.connection import connect_server
from ctseg.triton.errors import ALREADY_EXISTS, INTERNAL, NO_ANSWER, UNAVAILABLE, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.served_version import WantedModel
from tests.support.fake_triton import FakeClient, fake_connection
from tests.support.live_triton import free_port
from tests.support.toy_models import toy_spec

CHANGED = toy_spec(postprocessing=(KeepLargest(labels=(1,)),))


@dataclass
class NamedSegment:
    """A segment's name without memory."""

    name: str
    key: str = "/one"
    size: int = 16


def test_a_server_that_is_not_there_is_named_with_the_model() -> None:
    url = f"127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=f"toy at {url}: cannot be used") as caught:
        connect_server(Address(url), WantedModel("toy"), ClientOptions(connect_timeout_s=0.5))
    assert caught.value.__cause__ is not None


def test_a_server_that_failed_is_checked_by_what_it_serves() -> None:
    client = FakeClient()
    server = fake_connection(client)
    server.suspect(CallError(UNAVAILABLE, "lost"))
    assert not server.is_trusted
    assert server.last_problem.text == "lost"
    server.check()
    server.forget_failure()
    assert client.asked[-2:] == ["get_model_metadata", "get_model_config"]


def test_a_server_that_fails_its_check_is_asked_again_later() -> None:
    client = FakeClient()
    server = fake_connection(client)
    server.suspect(CallError(UNAVAILABLE, "lost"))
    client.gone = CallError(UNAVAILABLE, "still starting")
    with pytest.raises(CallError, match="still starting") as caught:
        server.check()
    before = server.try_again_at
    for _ in range(4):
        server.still_fails(caught.value)
    assert before < server.try_again_at < math.inf
    assert server.last_problem.text == "still starting"
    assert not server.is_trusted
    assert server.refusal is None
    client.gone = None
    server.check()


def test_a_hung_server_is_not_even_asked_until_it_has_answered() -> None:
    client = FakeClient()
    server = fake_connection(client)
    client.hold()
    server.send([FakeInput()], [], lambda *_: None)
    server.suspect(CallError(NO_ANSWER, "silent"))
    assert server.try_again_at == math.inf
    assert not server.wait_until_idle(0)
    client.release()
    assert server.try_again_at == 0
    assert server.wait_until_idle(0)


def test_a_server_whose_model_became_another_is_refused_for_good() -> None:
    client = FakeClient()
    server = fake_connection(client)
    client.specs = {1: CHANGED}
    with pytest.raises(SpecError, match=rf"was {toy_spec().digest[:12]} and is now {CHANGED.digest[:12]}") as caught:
        server.check()
    assert server.refusal is caught.value


def test_a_version_with_the_same_spec_goes_on_for_one_that_is_gone() -> None:
    client = FakeClient()
    server = fake_connection(client)
    client.specs = {2: toy_spec(), 3: CHANGED}
    server.check()
    assert server.version == 2


def test_a_version_that_is_gone_has_some_grace_before_it_is_named_as_lost() -> None:
    client = FakeClient()
    server = fake_connection(client)
    client.specs = {2: CHANGED}
    with pytest.raises(CallError, match=r"version 1 is not ready, ready are \[2\]"):
        server.check()
    assert server.refusal is None


def test_a_segment_is_made_known_once_and_again_after_trust_was_lost() -> None:
    client = FakeClient()
    server = fake_connection(client)
    segment = NamedSegment("one")
    client.asked.clear()
    server.register(segment, 60)
    server.register(segment, 60)
    assert client.asked == ["register_system_shared_memory"]
    server.suspect(CallError(UNAVAILABLE, "lost"))
    client.failures["register_system_shared_memory"] = [CallError(ALREADY_EXISTS, "it kept it")]
    server.register(segment, 60)
    assert client.asked == ["register_system_shared_memory"] * 2


def test_shared_memory_that_fails_again_and_again_is_given_up() -> None:
    server = fake_connection(FakeClient())
    server.shares_memory = True
    for expected in (True, True, False):
        server.doubt_shared_memory()
        assert server.shares_memory is expected


def test_a_region_that_the_server_holds_a_moment_longer_is_unregistered_all_the_same() -> None:
    client = FakeClient()
    server = fake_connection(client)
    server.abandon(NamedSegment("one"))
    client.asked.clear()
    client.failures["unregister_system_shared_memory"] = [CallError(INTERNAL, "in use")]
    server.close()
    assert client.asked == ["unregister_system_shared_memory"] * 2
    assert client.is_closed


def test_nothing_is_unregistered_while_a_request_may_use_it() -> None:
    client = FakeClient()
    server = fake_connection(client)
    client.hold()
    server.send([FakeInput()], [], lambda *_: None)
    server.abandon(NamedSegment("one"))
    client.asked.clear()
    server.close()
    assert client.asked == []
    client.release()


class FakeInput:
    """As much of tritonclient's ``InferInput`` as the fake server looks at."""

    def shape(self) -> list[int]:
        return [1, 2, 6, 10, 14]

    def _get_content(self) -> bytes:
        return b""
