"""A Triton server in this process whose answers, failures and silence a test decides; no clock is involved."""

import threading
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from ctseg.model_spec import ModelSpec
from ctseg.triton.addresses import Address
from ctseg.triton.configuration import ModelConfig, spec_parameter
from ctseg.triton.connection import ServerConnection
from ctseg.triton.errors import INTERNAL, UNAVAILABLE, CallError
from ctseg.triton.served_version import WantedModel, served_version
from tests.support.toy_models import toy_spec


class FakeClient:
    """Stands in for :class:`ctseg.triton.client.TritonClient`.

    Args:
        address: Its address, in messages.
        value: What every logit of its answers is, so that a test sees who answered.
        specs: What it serves, by version.
    """

    def __init__(
        self, address: str = "127.0.0.1:1", *, value: float = 1.0, specs: dict[int, ModelSpec] | None = None
    ) -> None:
        self.address = Address(address)
        self.value = value
        self.specs = specs or {1: toy_spec()}
        self.asked: list[str] = []
        """Methods that were called, in order."""
        self.failures: dict[str, list[CallError]] = {}
        """By method, ``infer`` too, what the next calls of it end with."""
        self.gone: CallError | None = None
        """What every call ends with, where the server is gone."""
        self.broken: CallError | None = None
        """What every request ends with, where the server is ready and its model is not well."""
        self.odd: float | None = None
        """A request with this first value fails; the model is as well as before."""
        self.poison: float | None = None
        """A request with this first value breaks the model."""
        self.lethal: Collection[float] = ()
        """A request with one of these first values ends the server."""
        self.messages: list[list[bytes]] = []
        """What each request says of its tensors: their bytes, as they stand in its message."""
        self.received: list[float] = []
        """The first value of each request."""
        self.is_closed = False
        self.requests = 0
        self._is_holding = False
        self._held: list[Callable[[], None]] = []
        self._changed = threading.Condition()

    def ask(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        assert timeout_s > 0
        self.asked.append(method)
        if self.gone is not None:
            raise CallError(self.gone.status, self.gone.text)
        if self.failures.get(method):
            raise self.failures[method].pop(0)
        if method == "get_model_metadata":
            spec = self.specs[int(arguments[1])] if len(arguments) > 1 else next(iter(self.specs.values()))
            return SimpleNamespace(
                versions=[str(version) for version in self.specs],
                inputs=[_tensor(spec.input, -1, len(spec.channels), spec)],
                outputs=[
                    _tensor(spec.output, -1, spec.num_heads, spec),
                    *(
                        [
                            SimpleNamespace(
                                name=spec.votes.name, datatype="UINT8", shape=[-1, spec.num_heads, *spec.patch_size]
                            )
                        ]
                        if spec.votes
                        else []
                    ),
                ],
            )
        if method == "get_model_config":
            config = ModelConfig(max_batch_size=4)
            for version, spec in self.specs.items():
                config.parameters[spec_parameter(version)].string_value = spec.to_json()
            return SimpleNamespace(config=config)
        return None

    def infer(
        self,
        model: str,
        version: int,
        inputs: list[Any],
        outputs: list[Any],
        receive: Callable[[Any, Any], None],
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        assert request_id == ""  # it has no output to give it back in
        assert not parameters
        spec = self.specs[version]
        assert model == spec.name
        self.requests += 1
        if hasattr(inputs[0], "_get_tensor"):
            self.messages.append([item._get_tensor().SerializeToString() for item in (*inputs, *outputs)])
            self.messages[-1].append(inputs[0]._get_content() or b"")
        if self.gone is not None:
            raise CallError(self.gone.status, self.gone.text)
        first = float(np.frombuffer(inputs[0]._get_content(), np.float32, 1)[0]) if inputs[0]._get_content() else 0.0
        self.received.append(first)
        if first == self.poison:
            self.broken = CallError(INTERNAL, "the model's process is dead")
        if first in self.lethal:
            self.gone = CallError(UNAVAILABLE, "Socket closed")
            raise CallError(self.gone.status, self.gone.text)
        if first == self.odd:
            raise CallError(INTERNAL, "this scan is odd")
        if self.broken is not None:
            raise CallError(self.broken.status, self.broken.text)
        if self.failures.get("infer"):
            raise self.failures["infer"].pop(0)
        batch = inputs[0].shape()[0]
        logits = np.full((batch, spec.num_heads, *spec.patch_size), self.value, np.float32)
        response = SimpleNamespace(
            outputs=[_tensor(spec.output, batch, spec.num_heads, spec)], raw_output_contents=[logits.tobytes()]
        )

        def answer() -> None:
            receive(SimpleNamespace(get_response=lambda: response), None)

        with self._changed:
            if self._is_holding:
                self._held.append(answer)
                self._changed.notify_all()
                return
        answer()

    def hold(self) -> None:
        """Answer no request until :meth:`release`."""
        self._is_holding = True

    def wait_until_held(self) -> None:
        """Wait until a request is being held."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held, 120), "no request came"

    def release(self) -> None:
        """Answer what was held, and what comes."""
        with self._changed:
            self._is_holding = False
            held, self._held = self._held, []
        for answer in held:
            answer()

    def close(self) -> None:
        self.is_closed = True


def fake_connection(client: FakeClient, kind: type[ServerConnection] = ServerConnection) -> ServerConnection:
    """Return a connection to a fake server, with the newest version that it serves."""
    wanted = WantedModel(next(iter(client.specs.values())).name)
    return kind(client, wanted, served_version(client, wanted, max(client.specs), 60))


def _tensor(tensor: Any, batch: int, channels: int, spec: ModelSpec) -> SimpleNamespace:
    return SimpleNamespace(name=tensor.name, datatype=tensor.dtype, shape=[batch, channels, *spec.patch_size])
