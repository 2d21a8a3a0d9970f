"""Where a model runs: on servers that are there, or on one that is started for the time of a run."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ctseg.arrays import Logits, Patches
from ctseg.compiled.loading import load_kernels_ahead
from ctseg.errors import ServerAwayError, ServerError, SetupError
from ctseg.model_spec import ModelSpec
from ctseg.numerics import KERNEL_MODULES, RECIPE_KERNEL_MODULES
from ctseg.predict.contract import ScanContract, contract_of
from ctseg.predict.predictor import PatchPredictor, PredictorAround
from ctseg.predict.recipe_segmenter import contract_of_recipe
from ctseg.recipe import Recipe
from ctseg.serving.entries import CONFIG_NAME, member_versions, read_recipe, read_spec, require_model_name
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.serving.threads import require_threads, threads_of_run
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor, connect

_log = logging.getLogger(__name__)
KEPT_RUNNING = ServerOptions(restarts=12)  # the windows of one scan that kills it do so three times each


Where = Literal["auto", "client", "server"]


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
        where: Where windows are cut: in this process (``client``), in the servers, which then get whole scans
            (``server``), or (``auto``) here where all servers share memory with this process or take no whole scans.

    Raises:
        SetupError: Neither servers nor a repository are given, or both; or the name or the version can be none.
    """

    name: str
    urls: tuple[str, ...] = ()
    repository: Path | None = None
    version: int | None = None
    spec: ModelSpec | None = None
    client: ClientOptions = field(default_factory=ClientOptions)
    where: Where = "auto"

    def __post_init__(self) -> None:
        require_model_name(self.name)
        if self.version is not None and not 0 < self.version < 2**63:
            raise SetupError(
                f"{self.name}: expected a version number of 1 or more, found {self.version}",
                settings=("model_version",),
            )
        if bool(self.urls) == (self.repository is not None):
            raise SetupError(
                f"{self.name}: addresses of running servers, or a repository to start a server on: give one of the two",
                settings=("urls", "repository"),
            )


@contextmanager
def opened(model: ServedModel) -> Iterator[PatchPredictor]:
    """Connect to a model, starting a server for the time of the context where none is named.

    Such a server is started again, on its port, where it or a process of its model has died; what was on its way is
    sent again. Where that does not help, :class:`ServerAwayError` ends what waits for it, at once.

    Raises:
        SetupError: There is no such repository, no server can be started here, or an address cannot be used.
        SpecError: The model has no spec, or one that ctseg cannot run.
        ServerError: No server answers.
    """
    require_threads(threads_of_run(starts_server=model.repository is not None))
    if model.repository is None:
        load_kernels_ahead(KERNEL_MODULES)
        with _connected(model, model.urls, model.client) as predictor:
            yield predictor
        return
    check_repository(model.repository)
    load_kernels_ahead(KERNEL_MODULES)
    with (
        embedded_server(model.repository, [model.name], KEPT_RUNNING) as server,
        _connected(model, (server.url,), server.client_options(model.client)) as predictor,
    ):
        yield _PredictorOfServer(predictor, server)


def recipe_on_disk(model: ServedModel) -> tuple[Recipe, int] | None:
    """Return the recipe that a model's name stands for in its repository, with its version; None where it does not.

    Raises:
        SpecError: Its entry cannot be read.
    """
    if model.repository is None or not (model.repository / model.name / CONFIG_NAME).is_file():
        return None
    return read_recipe(model.repository / model.name, model.version)


@contextmanager
def opened_members(model: ServedModel, recipe: Recipe) -> Iterator[Mapping[str, PatchPredictor]]:
    """Connect to all members of a recipe, on the servers of the recipe or on one that is started; see :func:`opened`.

    Args:
        model: Who serves the recipe.
        recipe: The recipe, which need not be served itself.

    Raises:
        SpecError: See :func:`opened`; or a member is not there, or not served, with the spec that the recipe names.
    """
    load_kernels_ahead((*KERNEL_MODULES, *RECIPE_KERNEL_MODULES))
    with ExitStack() as stack:
        server, urls, client = None, model.urls, model.client
        if model.repository is not None:
            require_threads(threads_of_run(starts_server=True))
            versions = {name: item.version for name, item in member_versions(model.repository, recipe).items()}
            server = stack.enter_context(
                embedded_server(model.repository, list(versions), KEPT_RUNNING, versions=versions)
            )
            urls, client = (server.url,), server.client_options(model.client)
        predictors: dict[str, PatchPredictor] = {}
        for member in recipe.members:
            predictor = stack.enter_context(connect(urls, member.model, digest=member.digest, options=client))
            predictors[member.model] = predictor if server is None else _PredictorOfServer(predictor, server)
        yield predictors


class _PredictorOfServer(PredictorAround):
    """A predictor that waits for its own server as long as there is one: nobody else will start another.

    Args:
        predictor: Connected to the server and to no other.
        server: Started by this process.
    """

    def __init__(self, predictor: TritonPredictor, server: RunningServer) -> None:
        super().__init__(predictor)
        self._close = predictor.close
        self._server = server
        server.life.at_end(self._end)

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        """See :meth:`ctseg.triton.predictor.TritonPredictor.predict`.

        Raises:
            ServerAwayError: The server has ended by itself, for good.
            ServerError: See its other children.
        """
        life = self._server.life
        try:
            logits = self._predictor.predict(patches, votes=votes)
        except ServerError as error:
            if not life.reason:
                raise
            raise ServerAwayError(
                f"{self.spec.name}: the server that was started for this run has ended: {life.reason}"
            ) from error
        life.computed()
        return logits

    def _end(self) -> None:
        _log.error("the end of tritonserver's log:\n%s", self._server.end_of_log)
        self._close()


def known_contract(model: ServedModel) -> ScanContract | None:
    """Return what a model or a recipe takes and gives, as far as it can be told without a server.

    Returns:
        None where only the servers know it, or where starting one will say what is wrong with the repository.

    Raises:
        SetupError: There is no such repository.
        SpecError: The repository's entry cannot be read, or its spec is foreign.
    """
    if model.spec is not None:
        return contract_of(model.spec)
    if model.repository is None:
        return None
    check_repository(model.repository)
    folder = model.repository / model.name
    if not (folder / CONFIG_NAME).is_file():
        return None
    if (found := read_recipe(folder, model.version)) is None:
        spec = read_spec(folder, model.version)
        return None if spec is None else contract_of(spec)
    recipe, _ = found
    members = member_versions(model.repository, recipe)
    return contract_of_recipe(recipe, {name: item.spec for name, item in members.items()})


def check_repository(repository: Path) -> None:
    """Refuse a repository that is not there.

    Raises:
        SetupError: It is not.
    """
    if not repository.is_dir():
        raise SetupError(
            f"no model repository at {repository}: name one, or a running server", settings=("repository", "urls")
        )


def _connected(model: ServedModel, urls: tuple[str, ...], client: ClientOptions) -> TritonPredictor:
    return connect(urls, model.name, version=model.version, spec=model.spec, options=client)
