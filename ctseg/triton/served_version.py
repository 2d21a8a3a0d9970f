"""What a server promises about a version of a model: its spec, checked against the server's own tensors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import tenacity

from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.predict.whole_scan import SCAN_SUFFIX
from ctseg.recipe import Recipe
from ctseg.triton.client import TritonClient
from ctseg.triton.configuration import (
    REQUEST_OUTPUT,
    recipe_parameter,
    scan_parameters,
    spec_parameter,
    spec_parameters,
)
from ctseg.triton.errors import CANCELLED, DEADLINE, NOT_FOUND, UNAVAILABLE, CallError

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 1.0
_FIRST_ANSWER_S = 2.0


class Served(Protocol):
    """One version of an entry on one server."""

    @property
    def version(self) -> int:
        """As the server numbers it."""
        ...

    @property
    def digest(self) -> str:
        """Of what makes labels: the model's spec, or the recipe."""
        ...


S = TypeVar("S", bound=Served)
S_co = TypeVar("S_co", bound=Served, covariant=True)


class Wanted(Protocol[S_co]):
    """What a client asks its servers for."""

    @property
    def name(self) -> str:
        """Of the model or the recipe."""
        ...

    @property
    def entry(self) -> str:
        """What it is called in the servers' repositories."""
        ...

    @property
    def version(self) -> int | None:
        """Version to use; None takes the newest that is ready on each server."""
        ...

    @property
    def digest(self) -> str | None:
        """Of what is asked for, whichever version has it; None takes any."""
        ...

    @property
    def is_hidden(self) -> bool:
        """Whether the servers do not say what their versions are."""
        ...

    def served(self, client: TritonClient, version: int, timeout_s: float) -> S_co:
        """Return what a server promises about a version; see :func:`served_version`."""
        ...


@dataclass(frozen=True)
class WantedModel:
    """The network of a model.

    Attributes:
        name: Name of the model.
        version: Version to use; None takes the newest that is ready on each server.
        spec: The spec, where the servers hide their configuration; None takes each server's own.
        digest: Of the spec that is asked for, whichever version has it; None takes any.
    """

    name: str
    version: int | None = None
    spec: ModelSpec | None = None
    digest: str | None = None

    @property
    def entry(self) -> str:
        """The model's own."""
        return self.name

    @property
    def is_hidden(self) -> bool:
        """Whether the spec was given."""
        return self.spec is not None

    def served(self, client: TritonClient, version: int, timeout_s: float) -> "ServedVersion":
        """See :func:`served_version`."""
        return served_version(client, self, version, timeout_s)


class RecipeServedError(SpecError):
    """What a server has under a name is a recipe, not a model.

    Attributes:
        recipe: The recipe.
        version: As the server numbers it.
    """

    def __init__(self, recipe: Recipe, version: int, source: str) -> None:
        super().__init__(f"{source}: this is a recipe of several models, which has no patches of its own")
        self.recipe = recipe
        self.version = version


@dataclass(frozen=True)
class ServedVersion:
    """One version of a model on one server.

    Attributes:
        version: As the server numbers it.
        spec: What it needs of its clients.
        max_batch_size: Most patches in one request, by the spec and the server.
        instances: How many of them the server runs.
        names_requests: Whether an answer says which request it belongs to.
    """

    version: int
    spec: ModelSpec
    max_batch_size: int
    instances: int
    names_requests: bool = False

    @property
    def digest(self) -> str:
        """Of the spec."""
        return self.spec.digest


def choose_version(
    client: TritonClient, wanted: Wanted[S], timeout_s: float, on_failure: Callable[[], None] = lambda: None
) -> S:
    """Find the version to use, waiting for a server that is not ready yet.

    Args:
        client: The server.
        wanted: What is asked for.
        timeout_s: How long to wait for the server, and for each of its answers.
        on_failure: Called when the server did not answer the first time; may raise what makes waiting useless.

    Raises:
        CallError: The server does not answer in time, or has no such model.
        SpecError: See :func:`served_version`.
    """
    deadline = time.monotonic() + timeout_s
    answer_s = [min(timeout_s, _FIRST_ANSWER_S)]

    def may_wait(error: BaseException) -> bool:
        if not isinstance(error, CallError):
            return False
        is_slow = error.status == DEADLINE and answer_s[0] < timeout_s
        return error.status == UNAVAILABLE or is_slow or (error.status == NOT_FOUND and _is_stopping(client))

    def look(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1:
            on_failure()
            answer_s[0] = timeout_s

    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_wait),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_BACKOFF_S, max=_LONGEST_BACKOFF_S),
        stop=lambda _: time.monotonic() >= deadline,
        before_sleep=look,
        reraise=True,
    )

    def choose() -> S:
        if wanted.version is not None:
            versions = [wanted.version]
        else:
            versions = sorted(ready_versions(client, wanted.entry, answer_s[0]), reverse=True)
        if wanted.digest is None:
            return wanted.served(client, versions[0], answer_s[0])
        return _version_with_digest(client, wanted, versions, answer_s[0])

    return attempts(choose)


def _version_with_digest(client: TritonClient, wanted: Wanted[S], versions: Sequence[int], timeout_s: float) -> S:
    found = []
    for version in versions:
        served = wanted.served(client, version, timeout_s)
        if served.digest == wanted.digest:
            return served
        found.append(f"{served.digest[:12]} in version {version}")
    raise SpecError(
        f"{wanted.name} at {client.address}: expected a version with the spec {str(wanted.digest)[:12]}, found "
        f"{', '.join(found)}: serve the model that is asked for; where a recipe asks for it, or write the recipe again"
    )


def _is_stopping(client: TritonClient) -> bool:
    """Whether a server that has no such model is about to end: it unloads its models first."""
    try:
        client.ask("is_server_live", timeout_s=_FIRST_ANSWER_S)
    except CallError as error:
        return error.status in (UNAVAILABLE, CANCELLED)
    return False


def ready_versions(client: TritonClient, model: str, timeout_s: float) -> list[int]:
    """Return the versions of a model that a server is ready to run; at least one.

    Raises:
        CallError: The server does not answer, or none is ready.
    """
    metadata = client.ask("get_model_metadata", model, timeout_s=timeout_s)
    versions = [int(text) for text in metadata.versions if text.isdigit()]
    if not versions:
        raise CallError(NOT_FOUND, "no version is ready")
    return versions


def served_version(client: TritonClient, wanted: WantedModel, version: int, timeout_s: float) -> ServedVersion:
    """Return what a server promises about a version, checked against the server's own tensors.

    Args:
        client: The server.
        wanted: The model, and its spec where it is known already.
        version: The version to look at, whatever ``wanted`` says.
        timeout_s: How long to wait for each answer.

    Raises:
        CallError: The server does not answer, or has no such version.
        SpecError: There is no spec, or one that contradicts the server; ``RecipeServedError`` where it is a recipe.
    """
    metadata = client.ask("get_model_metadata", wanted.name, str(version), timeout_s=timeout_s)
    source = f"{wanted.name} version {version} at {client.address}"
    spec, batch_limit, instances = wanted.spec, None, 1
    if spec is None:
        config = client.ask("get_model_config", wanted.name, str(version), timeout_s=timeout_s).config
        if recipe_parameter(version) in config.parameters:
            text = config.parameters[recipe_parameter(version)].string_value
            raise RecipeServedError(Recipe.from_json(text, source=source), version, source)
        spec = _spec_in(config, version, source)
        batch_limit = int(config.max_batch_size)
        instances = max(1, sum(group.count or 1 for group in config.instance_group))
    if spec.name != wanted.name:
        raise SpecError(f"{source}: the spec is of a model named {spec.name!r}: it belongs to another model")
    if batch_limit is not None and batch_limit < 1:
        raise SpecError(
            f"{source}: the spec expects batches (up to {spec.max_batch_size}), the server has max_batch_size "
            f"{batch_limit}: build the entry again"
        )
    _check_tensors(spec, metadata, source)
    most = spec.max_batch_size if batch_limit is None else min(spec.max_batch_size, batch_limit)
    names_requests = any(tensor.name == REQUEST_OUTPUT for tensor in metadata.outputs)
    return ServedVersion(version, spec, most, instances, names_requests)


def _spec_in(config: Any, version: int, source: str) -> ModelSpec:
    parameter = spec_parameter(version)
    model = config.name.removesuffix(SCAN_SUFFIX)
    if model != config.name and scan_parameters(config):
        raise SpecError(f"{source}: it takes the whole scans of {model}: give that name", settings=("model",))
    if parameter not in config.parameters:
        raise SpecError(
            f"{source}: its configuration has no parameter {parameter} (specs found: "
            f"{spec_parameters(config) or 'none'}): write the entry with `ctseg build`, or give the spec of this model "
            "as a file",
            settings=("spec",),
        )
    return ModelSpec.from_json(config.parameters[parameter].string_value, source=source)


def _check_tensors(spec: ModelSpec, metadata: Any, source: str) -> None:
    outputs = [tensor for tensor in metadata.outputs if tensor.name != REQUEST_OUTPUT]
    votes = [(spec.votes.name, "UINT8")] if spec.votes else []
    for what, kind, tensors, channels, found in (
        ("input", "channels", [(spec.input.name, spec.input.dtype)], spec.num_input_channels, metadata.inputs),
        ("output", "labels", [(spec.output.name, spec.output.dtype), *votes], spec.num_heads, outputs),
    ):
        expected = [(name, dtype, (-1, channels, *spec.patch_size)) for name, dtype in tensors]
        has = [(item.name, item.datatype, tuple(item.shape)) for item in found]
        if sorted(has) != sorted(expected):
            raise SpecError(
                f"{source}: the spec lists {channels} {kind} and expects the {what} {expected}, the server has {has}: "
                "build the entry again, or give the right spec",
                settings=("spec",),
            )
