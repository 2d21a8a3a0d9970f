"""After the start: a live server's answers, compared with PyTorch's."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ctseg.deploy.bundle import Bundle, read_bundle
from ctseg.deploy.parity import EXACT_SUMS, FAST_FP32, check_network, require
from ctseg.deploy.parity_report import Check, summary
from ctseg.errors import SpecError
from ctseg.model_spec import Precision
from ctseg.predict.predictor import PatchPredictor, predicting
from ctseg.stages import stage

_log = logging.getLogger(__name__)


def check_live(predictor: PatchPredictor, bundle: Bundle, precision: Precision) -> Check:
    """Compare a live server with PyTorch on the bundle's parity data, within the limits that it was built with.

    Args:
        predictor: Connected to the server.
        bundle: What the model was built from.
        precision: Which network it serves.

    Raises:
        SpecError: The server serves another network than the bundle's.
        ServerError: The server fails.
    """
    spec = predictor.spec
    if spec.network_sha256 != bundle.spec.network_sha256:
        raise SpecError(
            f"{spec.name}: the server serves network {spec.network_sha256[:12]}, the bundle {bundle.folder} holds "
            f"{bundle.spec.network_sha256[:12]}"
        )
    is_fast = precision == "fp32" and EXACT_SUMS not in spec.parity.detail
    return check_network(
        predicting(predictor, votes=spec.votes is not None),
        bundle.parity_data(),
        spec,
        what=f"live server, {spec.name}",
        precision=precision,
        limits=FAST_FP32 if is_fast else None,
    )


def prove_live(
    bundle_folder: Path,
    repository: Path,
    name: str,
    *,
    urls: Sequence[str] = (),
    accept_unproven: bool = False,
    report: Callable[[str], None] = _log.info,
) -> Check:
    """Prove a served model against PyTorch: through the wire, the server and its backend.

    Args:
        bundle_folder: What the model was built from.
        repository: The model repository; served by an embedded server unless ``urls`` are given.
        name: Name of the model.
        urls: Running servers.
        accept_unproven: Return a failed check instead of refusing.
        report: Takes lines that say how it goes.

    Raises:
        ParityError: The answers are not PyTorch's.
        SetupError: No server can be started here.
        ServerError: The server fails.
    """
    from ctseg.serving.server import embedded_server
    from ctseg.triton.options import ClientOptions
    from ctseg.triton.predictor import connect

    bundle = read_bundle(bundle_folder)
    with contextlib.ExitStack() as stack:
        options = ClientOptions()
        if not urls:
            with stage("a server starts"):
                server = stack.enter_context(embedded_server(repository, [name]))
            urls, options = (server.url,), ClientOptions(headers=server.headers)
        predictor = stack.enter_context(connect(urls, name, options=options))
        check = check_live(predictor, bundle, predictor.spec.precision)
    report(summary([check]))
    require(check, model=name, accept_unproven=accept_unproven)
    return check
