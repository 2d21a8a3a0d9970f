"""A real ``tritonserver`` on this machine, on loopback ports, for as long as it is needed.

The server comes from the PATH or from the nvidia-pytriton wheel. The wheel's release, 2.51 of October 2024, is
older than many security fixes: it listens on loopback only, never for production, and every protocol asks for a
key that only this process knows.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ctseg.errors import CtsegError, ServerAwayError, SetupError
from ctseg.files.signals import only_in_this_process, signals_as_exit
from ctseg.serving.entries import CONFIG_NAME, list_models, read_config, require_model_name
from ctseg.serving.installation import find_server
from ctseg.serving.life import SHM_PREFIX
from ctseg.serving.private_folder import private_folder, sweep_private_folders
from ctseg.serving.process import DEFAULT_OPTIONS, Launch, RunningServer, ServerOptions, stop
from ctseg.serving.proof import random_patches
from ctseg.serving.threads import require_threads, threads_of_run
from ctseg.serving.whole_scan.settings import read_scan_settings
from ctseg.triton import shared_memory
from ctseg.triton.configuration import recipe_parameters, scan_parameters, spec_parameters
from ctseg.triton.predictor import connect

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def embedded_server(
    repository: Path,
    models: Sequence[str] | None = None,
    options: ServerOptions = DEFAULT_OPTIONS,
    *,
    versions: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[RunningServer]:
    """Run a tritonserver on loopback while the ``with`` block runs.

    It is stopped whatever ends the block: its end, an exception, Ctrl-C, SIGTERM; and also when this
    process is killed. No process, no shared memory and no file of it stays behind; what a kill leaves in the moment of
    the start, and of this client's own shared memory, the next start removes. A forked child may leave the block too.

    Args:
        repository: Model repository; only read.
        models: Models to serve; None serves all of them.
        options: How it runs; by default private to this process, on a free port.
        versions: Of models of which no other version is to be served; a private server has the newest of the others.

    Yields:
        The running server.

    Raises:
        SetupError: No tritonserver, an unusable repository, or the server does not start (with the end
            of its log).
        ServerError: A model does not answer.
    """
    installation = find_server()
    names = tuple(models) if models is not None else tuple(list_models(repository))
    for name in names if models is not None else ():
        require_model_name(name)
        if not (repository / name / CONFIG_NAME).is_file():
            raise SetupError(
                f"model repository {repository} has no model {name!r}, only {', '.join(list_models(repository))}"
            )
    require_threads(threads_of_run(starts_server=True))
    shared_memory.sweep(SHM_PREFIX)
    sweep_private_folders()
    with signals_as_exit(), contextlib.ExitStack() as stack:
        folder = stack.enter_context(private_folder(installation.bytes_copied))
        served = folder / "models"  # links: the repository's own path may hold what Triton does not bear
        if options.watch:
            served.symlink_to(repository.resolve())
        else:
            _link_models(repository, names, served, versions, newest_only=options.is_private)
        server, process = Launch(installation, folder, served, names, options).start()
        stack.callback(only_in_this_process(stop), process)
        stack.callback(server.life.stopped)
        _log.info("tritonserver (%s) serves %s on %s", installation.source, ", ".join(names), server.url)
        if options.prove:
            _prove(server, repository, options)
        yield server


def run_server(repository: Path, options: ServerOptions, on_ready: Callable[[RunningServer], None]) -> None:
    """Serve a model repository on loopback until Ctrl-C or SIGTERM; what ``ctseg serve`` does.

    Args:
        repository: Model repository; only read.
        options: How it runs.
        on_ready: Called once, when it is ready.

    Raises:
        SetupError: See :func:`embedded_server`; or a setting of whole scans cannot be used.
        ServerAwayError: The server has ended by itself, for good.
    """
    read_scan_settings()  # entries for whole scans read them at their first request
    with contextlib.suppress(KeyboardInterrupt, SystemExit), embedded_server(repository, options=options) as server:
        on_ready(server)
        while not server.life.wait_for_end(0.5):  # a signal that another thread gets does not end a wait without limit
            pass
        raise ServerAwayError(
            f"tritonserver on {server.url} has ended ({server.life.reason}); the end of its log:\n{server.end_of_log}"
        )


def _prove(server: RunningServer, repository: Path, options: ServerOptions) -> None:
    """Run each model that carries a spec once."""
    for name in server.models:
        config = read_config(repository / name)
        if recipe_parameters(config) or scan_parameters(config):
            continue
        if not spec_parameters(config):
            _log.warning("%s carries no spec: it is served, but was not tried", name)
            continue
        try:
            with connect([server.url], name, options=server.client_options(options.client)) as predictor:
                shape = (1, predictor.spec.num_input_channels, *predictor.spec.patch_size)
                predictor.predict(random_patches(shape))
        except CtsegError as error:
            raise type(error)(
                f"{error}\nthe end of tritonserver's log:\n{server.end_of_log}", settings=error.settings
            ) from error


def _link_models(
    repository: Path, names: Sequence[str], linked: Path, only: Mapping[str, int], *, newest_only: bool
) -> None:
    """Make a repository of links to the chosen models, so that the server looks at nothing else."""
    linked.mkdir()
    for name in names:
        model = (repository / name).resolve()
        versions = [path for path in model.iterdir() if path.is_dir() and path.name.isdigit()]
        if name in only:
            versions = [path for path in versions if int(path.name) == only[name]]
        elif newest_only:
            versions = sorted(versions, key=lambda path: int(path.name))[-1:]
        (linked / name).mkdir()
        for path in (model / CONFIG_NAME, *versions):
            (linked / name / path.name).symlink_to(path)
