"""Where windows are cut: here, or in the servers, which then get whole scans."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from ctseg.errors import CtsegError, InputError, ModelNotFoundError, ServerAwayError, ServerError, SetupError, SpecError
from ctseg.files.volume import Volume, VolumeHeader
from ctseg.predict.contract import ScanContract
from ctseg.predict.estimate import MemoryEstimate
from ctseg.predict.predictor import Identity
from ctseg.predict.recipe_segmenter import RecipeSegmenter
from ctseg.predict.segment import CaseContext, Segmentation, WindowOptions
from ctseg.predict.segmenter import CaseSegmenter, WindowSegmenter
from ctseg.predict.whole_scan import scan_entry
from ctseg.runs.forwarding import Forwarding
from ctseg.runs.model import (
    KEPT_RUNNING,
    ServedModel,
    check_repository,
    opened,
    opened_members,
    recipe_on_disk,
)
from ctseg.serving.entries import CONFIG_NAME, member_versions, read_config
from ctseg.serving.process import RunningServer
from ctseg.serving.server import embedded_server
from ctseg.triton.configuration import scan_parameters
from ctseg.triton.scan_server import WantedScans
from ctseg.triton.served_version import RecipeServedError
from ctseg.triton.whole_scan import connect_scans

log = logging.getLogger(__name__)

_BUILD_AGAIN = "build it again, with its entry for whole scans, or cut the windows here"


@contextmanager
def opened_segmenter(
    model: ServedModel, options: WindowOptions | None = None, *, saves_probabilities: bool = False
) -> Iterator[CaseSegmenter]:
    """Open a model, or all members of a recipe, see :func:`ctseg.runs.model.opened`; closed with the context.

    Args:
        model: Which model or recipe, who serves it, and where windows are cut.
        options: How windows are laid and run.
        saves_probabilities: Whether probabilities are asked for, which do not travel.

    Raises:
        SetupError: See :func:`opened`; or whole scans are asked for, and probabilities too.
        SpecError: See :func:`opened`; or a member of the recipe is not there, or not served, with the spec that it
            names; or whole scans are asked for, and a server does not take them.
        ServerError: No server answers.
    """
    options = options or WindowOptions()
    if model.where == "server" and saves_probabilities:
        raise SetupError(
            f"{model.name}: probabilities do not travel: cut the windows here, or do without them",
            settings=("where", "save_probabilities"),
        )
    with ExitStack() as stack:
        if model.where != "server":
            segmenter = stack.enter_context(_windows_or_scans(model, options, saves_probabilities=saves_probabilities))
        elif model.repository is None:
            segmenter = stack.enter_context(_scans(model, options))
        else:
            server, served = stack.enter_context(_own_server(model))
            segmenter = _SegmenterOfServer(stack.enter_context(_scans(served, options)), server)
        yield segmenter


@dataclass(frozen=True)
class _Windows:
    """Windows that are cut here, and the whole scans that are the same."""

    segmenter: CaseSegmenter
    scans: WantedScans


@contextmanager
def _windows(model: ServedModel, options: WindowOptions) -> Iterator[_Windows]:
    with ExitStack() as stack:
        found = recipe_on_disk(model)
        if found is None:
            try:
                predictor = stack.enter_context(opened(model))
            except RecipeServedError as served:
                found = served.recipe, served.version
        segmenter: CaseSegmenter
        if found is None:
            segmenter = WindowSegmenter(predictor, options)
            specs = {model.name: predictor.spec}
        else:
            recipe, version = found
            predictors = stack.enter_context(opened_members(model, recipe))
            segmenter = RecipeSegmenter(recipe, predictors, options, version=version)
            specs = {name: predictor.spec for name, predictor in predictors.items()}
        stack.callback(segmenter.close)
        scans = WantedScans(
            name=model.name,
            digest=segmenter.contract.digest,
            networks=specs,
            is_recipe=found is not None,
            version=model.version,
            is_hidden=model.spec is not None,
        )
        yield _Windows(segmenter, scans)


@contextmanager
def _windows_or_scans(
    model: ServedModel, options: WindowOptions, *, saves_probabilities: bool
) -> Iterator[CaseSegmenter]:
    """Cut windows here where all servers share memory with this process, or must be; else send whole scans."""
    with ExitStack() as stack:
        windows = stack.enter_context(_windows(model, options))
        segmenter = windows.segmenter
        if model.where == "auto" and model.repository is None and segmenter.identity.transport != "shared memory":
            if saves_probabilities:
                log.info("%s: windows are cut here: probabilities do not travel", model.name)
            else:
                try:
                    scans = connect_scans(model.urls, windows.scans, segmenter.contract, options, model.client)
                except CtsegError as error:
                    log.info("%s: windows are cut here, the servers take no whole scans: %s", model.name, error)
                else:
                    stack.callback(scans.close)
                    log.info(
                        "%s: whole scans are sent, for no memory is shared with every server; windows are cut there",
                        model.name,
                    )
                    segmenter = ScansElseWindows(scans, segmenter)
        yield segmenter


@contextmanager
def _scans(model: ServedModel, options: WindowOptions) -> Iterator[CaseSegmenter]:
    """Send whole scans to servers that are there.

    Raises:
        SpecError: One of them does not take them.
    """
    here = replace(model, client=replace(model.client, shared_memory="off"))
    with _windows(here, options) as windows:
        try:
            scans = connect_scans(model.urls, windows.scans, windows.segmenter.contract, options, model.client)
        except (SpecError, ModelNotFoundError) as error:
            raise SpecError(f"{error}: {_BUILD_AGAIN}", settings=("where",)) from error
    try:
        yield scans
    finally:
        scans.close()


@contextmanager
def _own_server(model: ServedModel) -> Iterator[tuple[RunningServer, ServedModel]]:
    """Start a server that takes whole scans of a model, for the time of the context.

    Raises:
        SpecError: The repository has no entry for whole scans of it.
    """
    repository = model.repository
    if repository is None:
        raise ValueError(f"{model.name}: expected a repository")
    check_repository(repository)
    found = recipe_on_disk(model)
    entry, versions = scan_entry(model.name), {}
    if found is not None:
        recipe, version = found
        members = member_versions(repository, recipe)
        entry, versions = model.name, {model.name: version, **{name: item.version for name, item in members.items()}}
    elif model.version is not None:
        versions = {model.name: model.version, entry: model.version}
    folder = repository / entry
    if (repository / model.name / CONFIG_NAME).is_file() and not (
        (folder / CONFIG_NAME).is_file() and scan_parameters(read_config(folder))
    ):
        raise SpecError(
            f"{model.name}: {repository} has no entry for its whole scans: {_BUILD_AGAIN}", settings=("where",)
        )
    names = list(dict.fromkeys((model.name, entry, *versions)))
    with embedded_server(repository, names, KEPT_RUNNING, versions=versions) as server:
        yield server, replace(model, repository=None, urls=(server.url,), client=server.client_options(model.client))


class ScansElseWindows:
    """Sends whole scans; where no server takes them any more, windows are cut here from then on.

    So a run ends with the version that it began with: of networks servers keep the one before the newest, too. A scan
    that is too large for a message or for the servers goes by windows alone: one at a time, for its memory was
    estimated as that of a scan that is sent.

    Args:
        scans: Sends whole scans.
        windows: Cuts windows here, for the same model.
    """

    def __init__(self, scans: CaseSegmenter, windows: CaseSegmenter) -> None:
        self._scans = scans
        self._windows = windows
        self._refusal = ""
        self._lock, self._one_by_windows = threading.Lock(), threading.Lock()

    @property
    def identity(self) -> Identity:
        """That of what is used now."""
        return self._now.identity

    @property
    def contract(self) -> ScanContract:
        """That of both."""
        return self._scans.contract

    @property
    def cases_in_flight(self) -> int | None:
        """As many as keep servers busy that get whole scans."""
        return self._scans.cases_in_flight

    def estimate(self, header: VolumeHeader, *, saves_probabilities: bool) -> MemoryEstimate:
        """See :meth:`CaseSegmenter.estimate`."""
        return self._now.estimate(header, saves_probabilities=saves_probabilities)

    def segment(self, volume: Volume, context: CaseContext | None = None) -> Segmentation:
        """See :meth:`CaseSegmenter.segment`; what was not sent as a whole scan has a warning that says so."""
        if not self._refusal:
            try:
                return self._scans.segment(volume, context)
            except InputError as error:  # one that no network can use is refused here by the same error
                with self._one_by_windows:
                    return self._by_windows(volume, context, str(error))
            except (SpecError, ModelNotFoundError) as error:
                self._go_on_by_windows(error)
        return self._by_windows(volume, context, self._refusal)

    def abort(self) -> None:
        """See :meth:`CaseSegmenter.abort`."""
        self._scans.abort()
        self._windows.abort()

    def close(self) -> None:
        """See :meth:`CaseSegmenter.close`."""
        self._scans.close()
        self._windows.close()

    def _by_windows(self, volume: Volume, context: CaseContext | None, why: str) -> Segmentation:
        result = self._windows.segment(volume, context)
        return replace(result, warnings=(*result.warnings, f"windows were cut here: {why}"))

    @property
    def _now(self) -> CaseSegmenter:
        return self._windows if self._refusal else self._scans

    def _go_on_by_windows(self, error: CtsegError) -> None:
        with self._lock:
            if not self._refusal:
                self._refusal = str(error)
                log.warning("%s: windows are cut here from now on: %s", self.contract.name, error)


class _SegmenterOfServer(Forwarding):
    """A segmenter that waits for its own server as long as there is one: nobody else will start another.

    Args:
        segmenter: Connected to the server and to no other.
        server: Started by this process.
    """

    def __init__(self, segmenter: CaseSegmenter, server: RunningServer) -> None:
        super().__init__(segmenter)
        self._server = server
        server.life.at_end(self._end)

    def segment(self, volume: Volume, context: CaseContext | None = None) -> Segmentation:
        """See :meth:`CaseSegmenter.segment`.

        Raises:
            ServerAwayError: The server has ended by itself, for good.
        """
        life = self._server.life
        try:
            result = self._segmenter.segment(volume, context)
        except (ServerError, CancelledError) as error:
            if not life.reason:
                raise
            raise ServerAwayError(
                f"{self.contract.name}: the server that was started for this run has ended: {life.reason}"
            ) from error
        life.computed()
        return result

    def _end(self) -> None:
        log.error("the end of tritonserver's log:\n%s", self._server.end_of_log)
        self._segmenter.abort()
