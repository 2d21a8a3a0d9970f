"""Flags that the commands have in common which segment: who serves the model, what is written, limits."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.parser import Parser
from ctseg.errors import SetupError

if TYPE_CHECKING:
    from ctseg.model_spec import ModelSpec
    from ctseg.runs.model import ServedModel

DEFAULT_REPOSITORY = Path("model_repository")
_MOST_GB = 1_000_000
_LONGEST_S = 1e7
"""A third of a year: longer ones overflow what waits for them."""


def add_server(predict: Parser) -> None:
    """Add the flags that say who serves the model."""
    where = predict.add_argument_group("server")
    where.add_argument(
        "--url", dest="urls", nargs="+", metavar="HOST:PORT", help="gRPC address of one or more running servers"
    )
    where.add_argument(
        "--repository", type=Path, help=f"model repository for a server of its own (default: ./{DEFAULT_REPOSITORY})"
    )
    where.add_argument("--model_version", type=int, help="version of the model (default: the newest that is ready)")
    where.add_argument("--spec", type=Path, help="ctseg.json, where the server hides its configuration")
    where.add_argument(
        "--where", choices=["auto", "client", "server"], default="auto",
        help="where windows are cut: here (client), or in the servers, which get whole scans and send label maps "
        "(server); auto: here if memory is shared with all servers, else there if they can (default: auto)",
    )  # fmt: skip
    where.add_argument("--tls", action="store_true", help="encrypt; trusts the system's certificates")
    where.add_argument(
        "--tls_root_certificates", dest="root_certificates", type=Path, help="PEM file of the trusted certificates"
    )
    where.add_argument(
        "--tls_client_certificate", dest="client_certificate", type=Path, help="PEM file, for mutual TLS"
    )
    where.add_argument("--tls_client_key", dest="client_key", type=Path, help="PEM file, for mutual TLS")
    where.add_argument(
        "--header_env", dest="headers", nargs="+", default=[], metavar="NAME=VARIABLE",
        help="extra gRPC headers; the value is read from an environment variable, since command lines are public",
    )  # fmt: skip
    where.add_argument(
        "--shared_memory", choices=["auto", "on", "off"], default="auto",
        help="send tensors through shared memory if the server is on this machine and allows it (default: auto)",
    )  # fmt: skip


def add_output(predict: Parser) -> None:
    """Add the flags that say what is written."""
    output = predict.add_argument_group("output", "what is written of each case; all files of a case are one set")
    output.add_argument(
        "--output_format", dest="output_formats", nargs="+",
        choices=["nifti", "dicom_seg", "dicom_rtstruct", "dicom_sr"],
        help="formats: the label map in the model's ending, and DICOM objects that refer to the series of a scan; "
        "dicom_sr brings dicom_seg (default: nifti, and for DICOM series dicom_seg too)",
    )  # fmt: skip
    output.add_argument(
        "--segmentation_type", choices=["binary", "labelmap"], default="binary",
        help="of DICOM segmentations: binary, which every viewer knows, or labelmap, which is smaller (binary)",
    )  # fmt: skip
    output.add_argument(
        "--codes", type=Path, metavar="FILE",
        help="codes of labels in DICOM objects, JSON or CSV (default: those of the model, and of well-known names)",
    )  # fmt: skip
    output.add_argument(
        "--codes_required", action="store_true", help="refuse a model with labels that have no codes, before any work"
    )


def add_rows(segmentation: "argparse._ArgumentGroup") -> None:
    """Add the flag that says how the model's training scans were made of DICOM."""
    segmentation.add_argument(
        "--dicom_rows", choices=["down", "up"], default="down",
        help="order of rows in which the model sees DICOM slices, that of its training scans: down, as stored and as "
        "SimpleITK converts them; up, as dcm2niix does (down)",
    )  # fmt: skip


def add_limits(predict: Parser) -> None:
    """Add the flags that bound time and memory."""
    limits = predict.add_argument_group("limits")
    limits.add_argument("--timeout_s", type=seconds, default=300.0, help="longest time without any answer (300)")
    limits.add_argument("--case_timeout_s", type=seconds, help="longest time for one case (no limit)")
    limits.add_argument("--max_in_flight", type=int, help="requests at once (default: what keeps the server busy)")
    limits.add_argument(
        "--memory_gb", dest="memory_bytes", type=gigabytes, metavar="GB",
        help="memory for the cases in flight, and the most for one (half of what is free; one alone: all of it)",
    )  # fmt: skip


@contextmanager
def wrong_values_told() -> Iterator[None]:
    """Let a value that an option does not take be wrong usage here: in Python it is the caller's mistake."""
    try:
        yield
    except ValueError as error:
        raise SetupError(str(error)) from error


def model_of(args: argparse.Namespace) -> "ServedModel":
    """Return the model that the flags say, and who serves it."""
    from ctseg.runs.model import ServedModel
    from ctseg.triton.options import ClientOptions

    client = ClientOptions(
        timeout_s=args.timeout_s,
        connect_timeout_s=min(ClientOptions.connect_timeout_s, args.timeout_s),
        max_in_flight=args.max_in_flight,
        tls=args.tls or args.root_certificates is not None,
        root_certificates=args.root_certificates,
        client_certificate=args.client_certificate,
        client_key=args.client_key,
        headers={} if getattr(args, "dask", None) else _headers(args.headers),
        shared_memory=args.shared_memory,
    )
    return ServedModel(
        name=args.model,
        urls=tuple(args.urls or ()),
        repository=args.repository or (None if args.urls else DEFAULT_REPOSITORY),
        version=args.model_version,
        spec=_read_spec(args.spec),
        client=client,
        where=args.where,
    )


def _read_spec(path: Path | None) -> "ModelSpec | None":
    from ctseg.files.regular import open_regular
    from ctseg.model_spec import ModelSpec

    if path is None:
        return None
    try:
        with open_regular(path) as file:
            return ModelSpec.from_json(file.read(), source=str(path))
    except OSError as error:
        raise SetupError(f"--spec {path}: {error.strerror or error}") from error


def _headers(words: list[str]) -> dict[str, str]:
    variables = header_variables(words)
    for name, variable in variables.items():
        if variable not in os.environ:
            raise SetupError(f"--header_env {name}={variable}: expected NAME=VARIABLE with a variable that is set")
    return {name: os.environ[variable] for name, variable in variables.items()}


def header_variables(words: list[str]) -> dict[str, str]:
    """Return which variable of the environment holds which header."""
    pairs = [word.partition("=") for word in words]
    for name, _, variable in pairs:
        if not name or not variable:
            raise SetupError(f"--header_env {name}: expected NAME=VARIABLE")
    return {name.lower(): variable for name, _, variable in pairs}


def seconds(text: str) -> float:
    """Return a number of seconds that something can wait for."""
    value = float(text)
    if not 0 < value <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"expected seconds above 0 and at most {_LONGEST_S:.0f}, found {text}")
    return value


def gigabytes(text: str) -> int:
    """Return a number of gigabytes in bytes."""
    value = float(text)
    if not 1e-9 < value <= _MOST_GB:
        raise argparse.ArgumentTypeError(f"expected gigabytes above 0 and at most {_MOST_GB}, found {text}")
    return int(value * (1 << 30))
