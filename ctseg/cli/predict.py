"""Commands of the client: ``predict``."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.console import add_verbosity
from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.exit_codes import DONE, SOME_FAILED, WENT_AWAY
from ctseg.cli.parser import Parser, flags_worded
from ctseg.cli.report import counted
from ctseg.errors import SetupError

if TYPE_CHECKING:
    from ctseg.model_spec import ModelSpec
    from ctseg.predict.parts import Part
    from ctseg.predict.report import Report
    from ctseg.runs.model import ServedModel

DEFAULT_REPOSITORY = Path("model_repository")
_NAMES_TOLD = 20
_MOST_GB = 1_000_000
_LONGEST_S = 1e7
"""A third of a year: longer ones overflow what waits for them."""


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``predict``."""
    predict = commands.add_parser(
        "predict",
        help="segment a scan or a folder of scans",
        description="Segment a scan or a folder of scans through a Triton server. Without --url a server is started "
        "for the time of the command (Linux only), on the repository given. Writes <case><ending>, DICOM "
        "objects of DICOM series, report.json and report.csv.",
    )
    predict.add_argument(
        "-i", "--input", type=Path, required=True, help="a scan, or a folder of scans; DICOM series too"
    )
    predict.add_argument(
        "--recursive", action="store_true",
        help="scans in sub-folders too: patient1/scan.nii.gz becomes the case patient1_scan",
    )  # fmt: skip
    predict.add_argument("-o", "--output", type=Path, required=True, help="folder for label maps and report.json")
    predict.add_argument("-m", "--model", required=True, help="name of the model in the repository")
    groups = (_add_server, _add_segmentation, add_dicom, _add_output, _add_parts, _add_dask, _add_limits)
    for add_group in groups:
        add_group(predict)
    add_verbosity(predict)
    predict.set_defaults(run=_run)


def _add_server(predict: Parser) -> None:
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


def _add_segmentation(predict: Parser) -> None:
    how = predict.add_argument_group("segmentation")
    how.add_argument(
        "-step_size", dest="tile_step_size", type=float, default=0.5, help="step between windows, of the patch (0.5)"
    )
    how.add_argument(
        "-prev_stage_predictions", "--prev_stage_predictions", type=Path, metavar="DIR",
        help="label maps of a cascade's first stage, taken as given, for its second stage by itself",
    )  # fmt: skip
    how.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    how.add_argument("--save_probabilities", action="store_true", help="write <case>.npz beside each label map")
    how.add_argument(
        "--c", "--continue_prediction", dest="continue_prediction", action="store_true",
        help="skip cases that are done: the same scan, the same model, the same options; also joins a run that works "
        "in the same output folder",
    )  # fmt: skip
    how.add_argument(
        "--overwrite", action="store_true",
        help="replace label maps that ctseg has not made, or that were changed since; without it they are kept",
    )  # fmt: skip


def _add_output(predict: Parser) -> None:
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


def _add_parts(predict: Parser) -> None:
    parts = predict.add_argument_group(
        "parts", "several commands share a folder: every N-th case of the list from the I-th on, as nnU-Net cuts it"
    )
    parts.add_argument("-num_parts", "--num_parts", type=int, metavar="N", help="how many parts there are (1)")
    parts.add_argument("-part_id", "--part_id", type=int, metavar="I", help="which part this is, from 0 to N-1 (0)")
    parts.add_argument(
        "--parts_from", choices=["slurm", "kubernetes"],
        help="take the part from the variables of a Slurm job array (N too), or of a Kubernetes Indexed Job (give N)",
    )  # fmt: skip


def _add_dask(predict: Parser) -> None:
    dask = predict.add_argument_group("Dask", "hand the cases to the workers of a Dask cluster; needs --url")
    dask.add_argument("--dask", metavar="ADDRESS", help="the scheduler: tls://HOST:PORT, or tcp://HOST:PORT")
    dask.add_argument(
        "--dask_insecure", dest="insecure", action="store_true",
        help="take tcp:// beyond this machine too: whoever reaches the scheduler runs code on its workers",
    )  # fmt: skip
    dask.add_argument(
        "--dask_tls_ca", dest="tls_ca", type=Path,
        help="PEM file of the authority that the cluster trusts (default, as of the next two: Dask's configuration)",
    )  # fmt: skip
    dask.add_argument("--dask_tls_certificate", dest="tls_certificate", type=Path, help="PEM file of this client's")
    dask.add_argument("--dask_tls_key", dest="tls_key", type=Path, help="PEM file of its private key")


def _add_limits(predict: Parser) -> None:
    limits = predict.add_argument_group("limits")
    limits.add_argument("--timeout_s", type=_seconds, default=300.0, help="longest time without any answer (300)")
    limits.add_argument("--case_timeout_s", type=_seconds, help="longest time for one case (no limit)")
    limits.add_argument("--max_in_flight", type=int, help="requests at once (default: what keeps the server busy)")
    limits.add_argument(
        "--memory_gb", dest="memory_bytes", type=_gigabytes, metavar="GB",
        help="memory for the cases in flight, and the most for one (half of what is free; one alone: all of it)",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    from ctseg.files.codes import read_codes
    from ctseg.predict.options import BatchOptions
    from ctseg.predict.progress import progress_for

    codes = {} if args.codes is None else read_codes(args.codes)
    with _wrong_values_told():
        options = BatchOptions(
            tile_step_size=args.tile_step_size,
            mirroring=not args.disable_tta,
            continue_prediction=args.continue_prediction,
            save_probabilities=args.save_probabilities,
            overwrite=args.overwrite,
            case_timeout_s=args.case_timeout_s,
            memory_bytes=args.memory_bytes,
            part=_part(args),
            recursive=args.recursive,
            series=series_rules(args),
            case_name_from=tuple(args.case_name_from),
            prev_stage_predictions=args.prev_stage_predictions,
            output_formats=None if args.output_formats is None else tuple(args.output_formats),
            segmentation_type=args.segmentation_type,
            codes=codes,
            codes_required=args.codes_required,
        )
        model = _model(args)
    report = _runner(args)(
        args.input, args.output, model, options, progress_for=lambda cases: progress_for(cases, quiet=args.quiet)
    )
    return _summarise(report, args)


@contextmanager
def _wrong_values_told() -> Iterator[None]:
    """Let a value that an option does not take be wrong usage here: in Python it is the caller's mistake."""
    try:
        yield
    except ValueError as error:
        raise SetupError(str(error)) from error


def _part(args: argparse.Namespace) -> "Part":
    from ctseg.predict.parts import Part, part_from

    if args.parts_from is None:
        return Part(args.part_id or 0, 1 if args.num_parts is None else args.num_parts)
    if args.part_id is not None:
        raise SetupError(f"--part_id {args.part_id} and --parts_from {args.parts_from}: give one of the two")
    return part_from(args.parts_from, os.environ, args.num_parts)


def _runner(args: argparse.Namespace) -> "Callable[..., Report]":
    """Return what segments a folder: this process, or a Dask cluster."""
    if args.dask is None:
        from ctseg.runs.folder import segment_folder

        return segment_folder
    from ctseg.runs.dask import DaskScheduler, segment_folder_on_dask

    scheduler = DaskScheduler(args.dask, args.insecure, args.tls_ca, args.tls_certificate, args.tls_key)
    return partial(segment_folder_on_dask, scheduler=scheduler, header_variables=_header_variables(args.headers))


def _model(args: argparse.Namespace) -> "ServedModel":
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
        headers={} if args.dask else _headers(args.headers),
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


def _summarise(report: "Report", args: argparse.Namespace) -> int:
    """Print the sum of a run; return the exit status."""
    print(f"{counted(report, skipped=True)}: {args.output / 'report.json'}")
    failed = [case.case for case in report.cases if case.status == "failed"]
    _name("failed", failed)  # why has been logged
    formats: dict[str, list[str]] = {}
    for case in report.cases:
        for one in case.failed_formats:
            formats.setdefault(one.format, []).append(case.case)
    for name, cases in formats.items():
        _name(f"failed: {name}", cases)
    _name("kept, --overwrite replaces them", [case.case for case in report.cases if case.status == "kept"])
    _name("not done", [case.case for case in report.not_done])
    settings = [setting for case in report.cases if case.error is not None for setting in case.error.settings]
    if flags := flags_worded(settings, args.parser):
        print(flags, file=sys.stderr)
    if report.went_away:
        return WENT_AWAY
    return SOME_FAILED if failed or formats else DONE


def _name(what: str, cases: list[str]) -> None:
    if cases:
        more = f" and {len(cases) - _NAMES_TOLD} more" if len(cases) > _NAMES_TOLD else ""
        print(f"{what}: {', '.join(cases[:_NAMES_TOLD])}{more}", file=sys.stderr)


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
    variables = _header_variables(words)
    for name, variable in variables.items():
        if variable not in os.environ:
            raise SetupError(f"--header_env {name}={variable}: expected NAME=VARIABLE with a variable that is set")
    return {name: os.environ[variable] for name, variable in variables.items()}


def _header_variables(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for name, _, variable in pairs:
        if not name or not variable:
            raise SetupError(f"--header_env {name}: expected NAME=VARIABLE")
    return {name.lower(): variable for name, _, variable in pairs}


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"expected seconds above 0 and at most {_LONGEST_S:.0f}, found {text}")
    return value


def _gigabytes(text: str) -> int:
    """Return bytes."""
    value = float(text)
    if not 1e-9 < value <= _MOST_GB:
        raise argparse.ArgumentTypeError(f"expected gigabytes above 0 and at most {_MOST_GB}, found {text}")
    return int(value * (1 << 30))
