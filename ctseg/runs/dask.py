"""A folder of scans, segmented by the workers of a Dask cluster."""

import ipaddress
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import ServerUnavailableError, SetupError, missing_package
from ctseg.files.folders import make_folder
from ctseg.files.signals import signals_as_exit
from ctseg.predict.options import BatchOptions
from ctseg.predict.progress import Progress
from ctseg.predict.report import Report
from ctseg.runs.folder import scans_for
from ctseg.runs.model import ServedModel

if TYPE_CHECKING:
    import distributed

_CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class DaskScheduler:
    """Where the scheduler of a Dask cluster is, and how it is reached.

    Attributes:
        address: ``tls://host:port``; or ``tcp://host:port``, or ``host:port``, on this machine.
        insecure: Take ``tcp://`` beyond this machine too. Whoever reaches the ports of a scheduler or worker without
            TLS runs code there, and reads and changes what passes.
        tls_ca: PEM file of the authority that the whole cluster trusts; this and the next two take what Dask's own
            configuration says where they are None.
        tls_certificate: PEM file of this client's certificate.
        tls_key: PEM file of its private key; None where it stands in the certificate's file.
    """

    address: str
    insecure: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None


def segment_folder_on_dask(
    input_path: Path,
    output: Path,
    model: ServedModel,
    options: BatchOptions,
    scheduler: "DaskScheduler | distributed.Client",
    *,
    header_variables: Mapping[str, str] | None = None,
    progress_for: Callable[[int], Progress] = lambda cases: Progress(),  # noqa: ARG005 (how many there are)
) -> Report:
    """Segment a scan or a folder of scans on the workers of a Dask cluster, a case on each thread of a worker.

    Input and output lie on disks that all workers share, under the same paths. Each worker process connects to the
    model by itself, so that an address of this machine means each worker's own. A case whose worker dies is done
    again by another.

    Args:
        input_path: A scan, or a folder of scans, see :func:`ctseg.files.cases.find_cases`.
        output: Folder for label maps and ``report.json``; made if missing.
        model: Which model, and its running servers. Its options carry no headers.
        options: How cases are segmented; ``memory_bytes`` is for each worker process, where None is half of what its
            machine has to give and Dask lets it have.
        scheduler: The cluster's scheduler; or a client that is connected to one, whose maker answers for its security.
        header_variables: Names of environment variables by the gRPC header that they hold. Each worker looks them up
            in its own environment.
        progress_for: Returns what a person sees, for so many cases.

    Returns:
        The report; failed cases are in it, among them those that killed their workers.

    Raises:
        SetupError: Dask is not installed, the scheduler would be reached without protection, or workers do not share
            versions, paths or the model; the first that do not are named.
        ServerUnavailableError: No scheduler answers.
        ServerAwayError: The scheduler went away, or no worker could work: what is not done is left.
        CtsegError: Nothing could be segmented; its children say why.
    """
    _check_model(model)
    try:
        from ctseg.runs.dask_run import DaskRun
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        raise missing_package("Dask's distributed", needed_for="a run on a Dask cluster", extra="dask") from error

    output = output.absolute()
    if options.prev_stage_predictions is not None:
        options = replace(options, prev_stage_predictions=options.prev_stage_predictions.absolute())
    scans = scans_for(input_path.absolute(), output, options)
    connected = _connected(scheduler) if isinstance(scheduler, DaskScheduler) else nullcontext(scheduler)
    with signals_as_exit(), connected as client:
        make_folder(output)
        run = DaskRun(client, output, options, patience_s=model.client.timeout_s)
        return run.segment(scans, _absolute(model), dict(header_variables or {}), progress_for)


def _check_model(model: ServedModel) -> None:
    """Refuse a model that cannot be handed to workers.

    Raises:
        SetupError: It has no running servers, or headers that would travel through Dask's scheduler.
    """
    if not model.urls:
        raise SetupError(
            f"{model.name}: each worker of a Dask cluster would start a server of its own: name running servers",
            settings=("urls",),
        )
    if model.client.headers:
        raise SetupError(
            f"{model.name}: headers would travel through Dask's scheduler: name the environment variables that hold "
            "them on each worker",
            settings=("header_variables",),
        )


def _absolute(model: ServedModel) -> ServedModel:
    """Return the model with certificate files by absolute paths."""
    names = ("root_certificates", "client_certificate", "client_key")
    files = {name: path.absolute() for name in names if (path := getattr(model.client, name)) is not None}
    return replace(model, client=replace(model.client, **files))


@contextmanager
def _connected(scheduler: DaskScheduler) -> Iterator[Any]:
    """Connect to a scheduler.

    Raises:
        SetupError: It would be reached without protection, or a certificate cannot be used.
        ServerUnavailableError: Nobody answers.
    """
    import distributed

    address = _checked(scheduler)
    security = _security(scheduler) if address.startswith("tls://") else None
    try:
        client = distributed.Client(
            address, security=security, set_as_default=False, timeout=_CONNECT_TIMEOUT_S, name="ctseg"
        )
    except (OSError, TimeoutError) as error:
        raise ServerUnavailableError(
            f"no Dask scheduler answers at {address} within {_CONNECT_TIMEOUT_S:g} s: {error}", settings=("dask",)
        ) from error
    with client:
        _check_protected(client.scheduler_info()["address"], scheduler)
        yield client


def _checked(scheduler: DaskScheduler) -> str:
    """Return the address in full, once its protocol is one that may be used.

    Raises:
        SetupError: It may not.
    """
    address = scheduler.address if "://" in scheduler.address else f"tcp://{scheduler.address}"
    protocol, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit() or protocol not in ("tcp", "tls"):
        raise SetupError(
            f"Dask scheduler {scheduler.address}: expected tls://host:port, or tcp://host:port on this machine; Dask's "
            "port is 8786 by default",
            settings=("dask",),
        )
    _check_protected(address, scheduler)
    return address


def _check_protected(address: str, scheduler: DaskScheduler) -> None:
    """Refuse a scheduler that others reach without TLS.

    Args:
        address: As it was given; or where the scheduler says that it listens, which a tunnel hides.
        scheduler: What was given.

    Raises:
        SetupError: It is one.
    """
    protocol, _, rest = address.partition("://")
    if protocol == "tls" or _is_loopback(rest.rpartition(":")[0].strip("[]")) or scheduler.insecure:
        return
    raise SetupError(
        f"the Dask scheduler {address} is reached over a network without TLS: whoever else reaches it runs code on "
        "its workers, with their credentials and scans. Start scheduler and workers with certificates and name "
        "tls://host:port, or keep the scheduler to this machine; only in a network of your own say that this is "
        "meant",
        settings=("insecure", "tls_ca", "tls_certificate"),
    )


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _security(scheduler: DaskScheduler) -> Any:
    """Return Dask's security settings: what was given, else what Dask's configuration says.

    Raises:
        SetupError: A file is missing or is no certificate.
    """
    import distributed

    given = {"tls_ca_file": scheduler.tls_ca, "tls_client_cert": scheduler.tls_certificate}
    given["tls_client_key"] = scheduler.tls_key
    named = {name: str(path) for name, path in given.items() if path is not None}
    security = distributed.Security(require_encryption=True, **named)
    if security.tls_ca_file is None or security.tls_client_cert is None:
        raise SetupError(
            f"the Dask scheduler {scheduler.address} asks for certificates: name its authority and this client's "
            "certificate and key, here or in Dask's configuration (distributed.comm.tls)",
            settings=("tls_ca", "tls_certificate", "tls_key"),
        )
    try:
        security.get_connection_args("client")
    except (OSError, ssl.SSLError) as error:
        raise SetupError(
            f"a certificate for the Dask scheduler cannot be used ({security.tls_ca_file}, "
            f"{security.tls_client_cert}, {security.tls_client_key}): {error}",
            settings=("tls_ca", "tls_certificate", "tls_key"),
        ) from error
    return security
