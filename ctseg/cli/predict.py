"""Commands of the client: ``predict``."""

import argparse
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.errors import SetupError

if TYPE_CHECKING:
    from ctseg.model_spec import ModelSpec
    from ctseg.predict.report import Report
    from ctseg.triton.predictor import ClientOptions, TritonPredictor

logger = logging.getLogger(__name__)

DEFAULT_REPOSITORY = Path("model_repository")
_NAMES_TOLD = 20


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``predict``."""
    predict = commands.add_parser(
        "predict",
        help="segment a scan or a folder of scans",
        description="Segment a scan or a folder of scans through a Triton server. Without --url a server is started "
        "for the time of the command (Linux only), on the repository given. Writes <case><ending> and report.json.",
        allow_abbrev=False,
    )
    predict.add_argument("-i", "--input", type=Path, required=True, help="a scan, or a folder of scans")
    predict.add_argument("-o", "--output", type=Path, required=True, help="folder for label maps and report.json")
    predict.add_argument("-m", "--model", required=True, help="name of the model in the repository")

    where = predict.add_argument_group("server")
    where.add_argument("--url", nargs="+", metavar="HOST:PORT", help="gRPC address of one or more running servers")
    where.add_argument(
        "--repository", type=Path, help=f"model repository for a server of its own (default: ./{DEFAULT_REPOSITORY})"
    )
    where.add_argument("--model_version", type=int, help="version of the model (default: the newest that is ready)")
    where.add_argument("--spec", type=Path, help="ctseg.json, where the server hides its configuration")
    where.add_argument("--tls", action="store_true", help="encrypt; trusts the system's certificates")
    where.add_argument("--tls_root_certificates", type=Path, help="PEM file of the trusted certificates")
    where.add_argument("--tls_client_certificate", type=Path, help="PEM file, for mutual TLS")
    where.add_argument("--tls_client_key", type=Path, help="PEM file, for mutual TLS")
    where.add_argument(
        "--header_env", nargs="+", default=[], metavar="NAME=VARIABLE",
        help="extra gRPC headers; the value is read from an environment variable, since command lines are public",
    )  # fmt: skip
    where.add_argument(
        "--shared_memory", choices=["auto", "on", "off"], default="auto",
        help="send tensors through shared memory if the server is on this machine and allows it (default: auto)",
    )  # fmt: skip

    how = predict.add_argument_group("segmentation")
    how.add_argument("-step_size", type=_step_size, default=0.5, help="step between windows, of the patch (0.5)")
    how.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    how.add_argument("--save_probabilities", action="store_true", help="write <case>.npz beside each label map")
    how.add_argument(
        "--c", "--continue_prediction", dest="continue_prediction", action="store_true",
        help="skip cases whose label map is there and was made by the same model with the same options",
    )  # fmt: skip

    limits = predict.add_argument_group("limits")
    limits.add_argument("--timeout_s", type=_positive, default=300.0, help="longest time without any answer (300)")
    limits.add_argument("--case_timeout_s", type=_positive, help="longest time for one case (no limit)")
    limits.add_argument("--max_in_flight", type=int, help="requests at once (default: what keeps the server busy)")
    limits.add_argument("--memory_gb", type=_positive, help="memory for the cases in flight (half of what is free)")
    predict.add_argument("--quiet", action="store_true", help="errors only")
    predict.add_argument("--verbose", action="store_true", help="tell more, with tracebacks of unexpected errors")
    predict.set_defaults(run=run_predict)


def run_predict(args: argparse.Namespace) -> int:
    """Run ``ctseg predict``."""
    from ctseg.files.cases import find_cases
    from ctseg.predict.folder import BatchOptions, segment_cases
    from ctseg.predict.progress import progress_for
    from ctseg.triton.predictor import connect

    _configure_logging(quiet=args.quiet, verbose=args.verbose)
    spec = _read_spec(args.spec)
    with ExitStack() as stack:
        urls, options = _server(args, stack)
        predictor = stack.enter_context(
            connect(urls, args.model, version=args.model_version, spec=spec, options=options)
        )
        _check_mirroring(predictor, disable_tta=args.disable_tta)
        if predictor.spec.parity.state != "proven":
            logger.warning(
                "%s is %s: nobody has shown that it gives the labels of its checkpoint (see ctseg build)",
                args.model, predictor.spec.parity.state,
            )  # fmt: skip
        cases = find_cases(args.input, channels=len(predictor.spec.channels))
        report = segment_cases(
            cases,
            predictor,
            args.output,
            BatchOptions(
                tile_step_size=args.step_size,
                mirroring=not args.disable_tta,
                continue_prediction=args.continue_prediction,
                save_probabilities=args.save_probabilities,
                case_timeout_s=args.case_timeout_s,
                memory_bytes=None if args.memory_gb is None else int(args.memory_gb * (1 << 30)),
            ),
            progress=progress_for(len(cases), quiet=args.quiet),
        )
    return _told(report, args.output)


def _told(report: "Report", output: Path) -> int:
    """Print the sum of a run; return the exit code."""
    counts = {status: sum(case.status == status for case in report.cases) for status in ("ok", "skipped", "failed")}
    print(f"{counts['ok']} done, {counts['skipped']} skipped, {counts['failed']} failed: {output / 'report.json'}")
    if failed := [case.case for case in report.cases if case.status == "failed"]:  # why has been logged
        more = f" and {len(failed) - _NAMES_TOLD} more" if len(failed) > _NAMES_TOLD else ""
        print(f"failed: {', '.join(failed[:_NAMES_TOLD])}{more}", file=sys.stderr)
    return 1 if failed else 0


def _server(args: argparse.Namespace, stack: ExitStack) -> tuple[list[str], "ClientOptions"]:
    """Return the URLs to use, starting a server for the time of ``stack`` where none is named."""
    from ctseg.compiled.loading import load_kernels_ahead
    from ctseg.numerics import KERNEL_MODULES
    from ctseg.triton.predictor import ClientOptions

    given = {
        "timeout_s": args.timeout_s,
        "connect_timeout_s": min(ClientOptions.connect_timeout_s, args.timeout_s),
        "max_in_flight": args.max_in_flight,
        "tls": args.tls or args.tls_root_certificates is not None,
        "root_certificates": args.tls_root_certificates,
        "client_certificate": args.tls_client_certificate,
        "client_key": args.tls_client_key,
        "headers": _headers(args.header_env),
        "shared_memory": args.shared_memory,
    }
    if args.url:
        if args.repository:
            raise SetupError("--url names running servers and --repository starts one: give one of the two")
        load_kernels_ahead(KERNEL_MODULES)
        return args.url, ClientOptions(**given)
    repository = args.repository or DEFAULT_REPOSITORY
    if not repository.is_dir():
        raise SetupError(f"no model repository at {repository}: name one by --repository, or a running server by --url")
    from ctseg.serving.server import embedded_server

    load_kernels_ahead(KERNEL_MODULES)
    server = stack.enter_context(embedded_server(repository, [args.model]))
    given["headers"] = {**given["headers"], **server.headers}
    return [server.url], ClientOptions(**given)


def _check_mirroring(predictor: "TritonPredictor", *, disable_tta: bool) -> None:
    spec = predictor.spec
    if disable_tta and spec.mirroring == "graph":
        raise SetupError(
            f"{spec.name} mirrors inside its graph, which --disable_tta cannot switch off: "
            f"use an entry that was exported with --tta client or --tta none"
        )


def _read_spec(path: Path | None) -> "ModelSpec | None":
    from ctseg.model_spec import ModelSpec

    if path is None:
        return None
    try:
        return ModelSpec.from_json(path.read_bytes(), source=str(path))
    except OSError as error:
        raise SetupError(f"--spec {path}: {error.strerror or error}") from error


def _headers(words: list[str]) -> dict[str, str]:
    headers = {}
    for word in words:
        name, _, variable = word.partition("=")
        if variable not in os.environ:
            raise SetupError(f"--header_env {word}: expected NAME=VARIABLE with a variable that is set")
        headers[name.lower()] = os.environ[variable]
    return headers


def _step_size(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction of the patch, over 0 and at most 1, found {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return value


class _StderrHandler(logging.Handler):
    """Writes to whatever standard error is now, so that a progress bar can put itself below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _configure_logging(*, quiet: bool, verbose: bool) -> None:
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("ctseg")
    root.handlers = [handler]
    root.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
