"""One Triton server that takes whole scans: what its entry promises, how far a scan is, and giving one up."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.predict.whole_scan import (
    CANCEL,
    DIGEST,
    LABELS,
    LABELS_DEFLATED,
    PREVIOUS_LABELS,
    PROGRESS_OF,
    REPORT,
    SPACING,
    VOXELS_FP32,
    VOXELS_INT16,
    ScanProgress,
    scan_entry,
)
from ctseg.triton.addresses import Address
from ctseg.triton.client import TritonClient
from ctseg.triton.configuration import scan_parameter, scan_parameters
from ctseg.triton.errors import UNIMPLEMENTED, WRONG, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.scan_tensors import outputs_of
from ctseg.triton.served_version import ServedVersion, WantedModel, choose_version
from ctseg.triton.server import Server, connect_to

log = logging.getLogger(__name__)

_CONTROL_TIMEOUT_S = 5.0
_LOADING_S = 60.0
"""How long the first request may take, which loads the entry's service."""
_NOBODY = "0"
"""Id of no request: asking after it shows that the entry's service runs."""
_INPUTS = {VOXELS_INT16, VOXELS_FP32, SPACING, PREVIOUS_LABELS}
_OUTPUTS = {LABELS, LABELS_DEFLATED, REPORT}


@dataclass(frozen=True)
class ServedScans:
    """One version of an entry for whole scans on one server.

    Attributes:
        version: As the server numbers it.
        digest: Of the model's spec, or of the recipe.
        networks: Those that it runs, as this server has them.
    """

    version: int
    digest: str
    networks: tuple[ServedVersion, ...]


@dataclass(frozen=True)
class WantedScans:
    """An entry that takes whole scans.

    Attributes:
        name: Of the model or the recipe.
        digest: Of the model's spec, or of the recipe.
        networks: Specs of the networks that it runs, by name.
        is_recipe: Whether the entry is the recipe's own.
        version: Version to use; None takes the newest with the digest on each server.
        is_hidden: Whether the servers hide their configurations; a request says what it expects all the same.
    """

    name: str
    digest: str
    networks: Mapping[str, ModelSpec]
    is_recipe: bool = False
    version: int | None = None
    is_hidden: bool = False

    @property
    def entry(self) -> str:
        """A recipe's own, or the one beside the model's."""
        return self.name if self.is_recipe else scan_entry(self.name)

    def served(self, client: TritonClient, version: int, timeout_s: float) -> ServedScans:
        """Return what a server promises about a version, once its service has answered.

        Raises:
            CallError: The server does not answer, or has no such version.
            SpecError: It takes no whole scans, or its service cannot run.
        """
        source = f"{self.entry} version {version} at {client.address}"
        metadata = client.ask("get_model_metadata", self.entry, str(version), timeout_s=timeout_s)
        inputs, outputs = ({tensor.name for tensor in tensors} for tensors in (metadata.inputs, metadata.outputs))
        if inputs != _INPUTS or outputs != _OUTPUTS:
            raise SpecError(f"{source}: expected an entry that takes whole scans, found the inputs {sorted(inputs)}")
        if self.is_hidden:
            digest = self.digest
            networks = [ServedVersion(version, spec, spec.max_batch_size, 1) for spec in self.networks.values()]
        else:
            digest = _digest_of(client, self.entry, version, source, timeout_s)
            networks = [
                choose_version(client, WantedModel(name, digest=spec.digest), timeout_s)
                for name, spec in self.networks.items()
            ]
        try:
            client.tell(self.entry, version, {PROGRESS_OF: _NOBODY}, timeout_s=max(timeout_s, _LOADING_S))
        except CallError as error:
            if error.status == UNIMPLEMENTED:
                raise SpecError(f"{source}: takes no whole scans: {error.text}") from error
            raise
        return ServedScans(version, digest, tuple(networks))


def _digest_of(client: TritonClient, entry: str, version: int, source: str, timeout_s: float) -> str:
    config = client.ask("get_model_config", entry, str(version), timeout_s=timeout_s).config
    key = scan_parameter(version)
    if key not in config.parameters:
        raise SpecError(
            f"{source}: its configuration has no parameter {key} (found: {scan_parameters(config) or 'none'}): build "
            "the model again"
        )
    return str(config.parameters[key].string_value)


def connect_scan_server(
    address: Address, wanted: WantedScans, options: ClientOptions, on_wait: Callable[[], None] = lambda: None
) -> "ScanServer":
    """Connect to one server, see :func:`ctseg.triton.server.connect_to`."""
    client, served = connect_to(address, wanted, options, on_wait)
    return ScanServer(client, wanted, served)


class ScanServer(Server[ServedScans]):
    """One Triton server, as those see it who send it whole scans.

    Attributes:
        answers: How many scans it has answered.
    """

    def __init__(self, client: TritonClient, wanted: WantedScans, served: ServedScans) -> None:
        super().__init__(client, wanted, served)
        self.answers = 0
        self._entry = wanted.entry
        self._to_cancel: set[str] = set()
        self._cancelling = threading.Lock()

    def answered(self) -> None:
        """See :meth:`Server.answered`."""
        super().answered()
        with self._lock:
            self.answers += 1

    def send_scan(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[str],
        parameters: Mapping[str, str | bool],
        receive: Callable[[Any, Any], None],
        request_id: str,
    ) -> Callable[[], None]:
        """Send a scan, once those that were given up are known to be; ``receive`` is called on a thread of gRPC's.

        Returns:
            Cancels the call, though perhaps not the work.

        Raises:
            CallError: It could not be sent.
        """
        with self._cancelling:
            for given_up in tuple(self._to_cancel):
                self._tell_cancel(given_up)
        expected = {**parameters, DIGEST: self.served.digest}
        return self.send(list(inputs), outputs_of(outputs), receive, request_id, expected)

    def progress_of(self, request_id: str) -> ScanProgress:
        """Ask how far a scan is.

        Raises:
            CallError: No answer, or none that says so.
        """
        return _progress_in(self._tell({PROGRESS_OF: request_id}), request_id)

    def give_up(self, request_id: str) -> bool:
        """Let the server end a scan; where it cannot be told now, it is before it gets another. Return if it was."""
        with self._cancelling:
            self._to_cancel.add(request_id)
            try:
                self._tell_cancel(request_id)
            except CallError as error:
                log.debug("%s: %s was not given up: %s", self.url, request_id, error)
                return False
            return True

    def _tell_cancel(self, request_id: str) -> None:
        self._tell({CANCEL: request_id})
        self._to_cancel.discard(request_id)

    def _tell(self, parameters: Mapping[str, str | bool]) -> Any:
        return self._client.tell(self._entry, self.version, parameters, timeout_s=_CONTROL_TIMEOUT_S)

    def computed(self) -> int | None:
        """Return how often the networks have run so far; None where the server does not say."""
        try:
            statistics = [
                self._client.ask("get_inference_statistics", network.spec.name, timeout_s=_CONTROL_TIMEOUT_S)
                for network in self.served.networks
            ]
        except CallError:
            return None
        return sum(int(model.execution_count) for answer in statistics for model in answer.model_stats)


def _progress_in(result: Any, request_id: str) -> ScanProgress:
    response = result.get_response()
    names = [tensor.name for tensor in response.outputs]
    if names != [REPORT] or len(response.raw_output_contents) != 1:
        raise CallError(WRONG, f"expected {REPORT}, found {names}")
    try:
        progress = ScanProgress.model_validate_json(response.raw_output_contents[0])
    except ValidationError as error:
        raise CallError(WRONG, f"expected how far a scan is, found {error.error_count()} problems") from error
    if progress.request != request_id:
        raise CallError(WRONG, "the answer to another request came")
    return progress
