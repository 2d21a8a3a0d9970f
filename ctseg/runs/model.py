"""Where a model runs: on servers that are there, or on one that is started for the time of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ctseg.compiled.loading import load_kernels_ahead
from ctseg.errors import SetupError
from ctseg.model_spec import ModelSpec
from ctseg.numerics import KERNEL_MODULES
from ctseg.serving.server import embedded_server
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor, connect


@dataclass(frozen=True)
class ServedModel:
    """A model by its name, and who serves it.

    Attributes:
        name: In the model repository.
        urls: gRPC addresses of running servers, ``host:port``; empty where a server is to be started.
        repository: Model repository for a server of its own (Linux), on loopback; None with ``urls``.
        version: Of the model; None takes the newest that is ready on each server.
        spec: The spec, where the servers hide their configuration.
        client: How to talk to the servers.

    Raises:
        SetupError: Neither servers nor a repository are given, or both.
    """

    name: str
    urls: tuple[str, ...] = ()
    repository: Path | None = None
    version: int | None = None
    spec: ModelSpec | None = None
    client: ClientOptions = field(default_factory=ClientOptions)

    def __post_init__(self) -> None:
        if bool(self.urls) == (self.repository is not None):
            raise SetupError(
                f"{self.name}: addresses of running servers, or a repository to start a server on: give one of the two",
                settings=("urls", "repository"),
            )


@contextmanager
def opened(model: ServedModel) -> Iterator[TritonPredictor]:
    """Connect to a model, starting a server for the time of the context where none is named.

    Raises:
        SetupError: There is no such repository, no server can be started here, or an address cannot be used.
        SpecError: The model has no spec, or one that ctseg cannot run.
        ServerError: No server answers.
    """
    if model.repository is None:
        load_kernels_ahead(KERNEL_MODULES)
        with _connected(model, model.urls, model.client) as predictor:
            yield predictor
        return
    if not model.repository.is_dir():
        raise SetupError(
            f"no model repository at {model.repository}: name one, or a running server", settings=("repository", "urls")
        )
    load_kernels_ahead(KERNEL_MODULES)
    with (
        embedded_server(model.repository, [model.name]) as server,
        _connected(model, (server.url,), server.client_options(model.client)) as predictor,
    ):
        yield predictor


def _connected(model: ServedModel, urls: tuple[str, ...], client: ClientOptions) -> TritonPredictor:
    return connect(urls, model.name, version=model.version, spec=model.spec, options=client)
