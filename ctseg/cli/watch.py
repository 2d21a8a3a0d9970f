"""The command ``watch``: a PACS whose series are segmented as they come."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.console import add_verbosity
from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.exit_codes import DONE, SOME_FAILED
from ctseg.cli.parser import Parser
from ctseg.cli.segmenting import (
    add_limits,
    add_output,
    add_rows,
    add_server,
    gigabytes,
    model_of,
    seconds,
    wrong_values_told,
)
from ctseg.errors import missing_package

if TYPE_CHECKING:
    from ctseg.predict.options import BatchOptions
    from ctseg.runs.watch_notes import WatchSummary

_PACKAGES = ("requests", "urllib3", "pydicom")


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``watch``."""
    watch = commands.add_parser(
        "watch",
        help="segment the CT series of a PACS as they come, and store the results there",
        description="Watch a PACS by DICOMweb: CT series that fit the rules and do not grow any more are fetched, "
        "segmented through a Triton server, and their DICOM objects stored in the PACS. The output folder remembers "
        "what is done: a watcher may be killed and started again, and several may share a folder. Exit status with "
        "--once: 0 all done, 1 a series was refused, has failed or lacks a format, 2 wrong usage or setup, 3 the PACS, "
        "the server or the disk went away. Without it the command ends by a signal.",
    )
    watch.add_argument(
        "--dicomweb", required=True, metavar="URL", help="root of the PACS's DICOMweb: https://pacs.example/dicom-web"
    )
    watch.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for what is written, and for what is remembered"
    )
    watch.add_argument("-m", "--model", required=True, help="name of the model in the repository")
    for add_group in (_add_watching, _add_pacs, add_dicom, add_output, add_server, _add_segmentation, add_limits):
        add_group(watch)
    add_verbosity(watch)
    watch.set_defaults(run=_run)


def _add_watching(watch: Parser) -> None:
    what = watch.add_argument_group("what is watched")
    what.add_argument(
        "--study_days", type=int, default=2, metavar="N", help="studies of the last N days, today among them (2)"
    )
    what.add_argument(
        "--study_date", metavar="DATE", help="studies of these dates instead: YYYYMMDD, FROM-TO, FROM- or -TO"
    )
    what.add_argument(
        "--stable_s", type=_seconds_or_none, default=60.0,
        help="a series is whole once its instances have not changed for so long (60)",
    )  # fmt: skip
    what.add_argument("--poll_s", type=seconds, default=30.0, help="between two looks (30)")
    what.add_argument("--once", action="store_true", help="do what is there, and end")
    what.add_argument(
        "--again", action="store_true",
        help="make again what was refused, has failed, or was deleted from the PACS; each series once a command",
    )  # fmt: skip
    what.add_argument("--keep", action="store_true", help="keep what was fetched, in OUT/fetched; else it is removed")


def _add_pacs(watch: Parser) -> None:
    pacs = watch.add_argument_group("PACS", "no password stands in a command line or an address")
    pacs.add_argument(
        "--pacs_credentials", dest="credentials", type=Path, metavar="FILE", help="holds USER:PASSWORD or Bearer TOKEN"
    )
    pacs.add_argument(
        "--pacs_credentials_env", dest="credentials_env", metavar="VARIABLE",
        help="variable of the environment that holds them",
    )  # fmt: skip
    pacs.add_argument(
        "--pacs_ca_certificates", dest="ca_certificates", type=Path, metavar="FILE",
        help="PEM file of the trusted authorities (default: those that Python's requests trusts)",
    )  # fmt: skip
    pacs.add_argument("--pacs_client_certificate", type=Path, metavar="FILE", help="PEM file, for mutual TLS")
    pacs.add_argument("--pacs_client_key", type=Path, metavar="FILE", help="PEM file, for mutual TLS")
    pacs.add_argument("--pacs_timeout_s", type=seconds, default=60.0, help="longest time without any answer (60)")
    pacs.add_argument(
        "--pacs_patience_s", type=seconds, default=60.0, help="how long a request is tried while the PACS is away (60)"
    )
    pacs.add_argument(
        "--max_series_gb", dest="most_series_bytes", type=gigabytes, default=8 << 30, metavar="GB",
        help="a larger series is not fetched (8)",
    )  # fmt: skip


def _add_segmentation(watch: Parser) -> None:
    how = watch.add_argument_group("segmentation")
    how.add_argument(
        "-step_size", dest="tile_step_size", type=float, default=0.5, help="step between windows, of the patch (0.5)"
    )
    how.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    add_rows(how)


def _run(args: argparse.Namespace) -> int:
    try:
        from ctseg.pacs.options import Credentials, PacsOptions
        from ctseg.runs.watch import WatchOptions, watch
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise missing_package(str(error.name), needed_for="a PACS", extra="dicom") from error

    with wrong_values_told():
        pacs = PacsOptions(
            url=args.dicomweb,
            credentials=Credentials(args.credentials, args.credentials_env),
            ca_certificates=args.ca_certificates,
            client_certificate=args.pacs_client_certificate,
            client_key=args.pacs_client_key,
            timeout_s=args.pacs_timeout_s,
            patience_s=args.pacs_patience_s,
            most_series_bytes=args.most_series_bytes,
        )
        watching = WatchOptions(
            study_date=args.study_date,
            study_days=args.study_days,
            stable_s=args.stable_s,
            poll_s=args.poll_s,
            once=args.once,
            again=args.again,
            keep=args.keep,
        )
        options, model = _options(args), model_of(args)
    return _summarise(watch(pacs, args.output, model, options, watching))


def _options(args: argparse.Namespace) -> "BatchOptions":
    from ctseg.files.codes import read_codes
    from ctseg.predict.options import BatchOptions

    return BatchOptions(
        tile_step_size=args.tile_step_size,
        mirroring=not args.disable_tta,
        case_timeout_s=args.case_timeout_s,
        memory_bytes=args.memory_bytes,
        series=series_rules(args),
        case_name_from=tuple(args.case_name_from),
        dicom_rows=args.dicom_rows,
        output_formats=None if args.output_formats is None else tuple(args.output_formats),
        segmentation_type=args.segmentation_type,
        codes={} if args.codes is None else read_codes(args.codes),
        codes_required=args.codes_required,
    )


def _summarise(summary: "WatchSummary") -> int:
    """Print the sum of a watch that has ended by itself; return the exit status."""
    counts = summary.counts
    words = [f"{counts[state]} {state}" for state in ("stored", "left out", "refused", "failed")]
    words += [f"{summary.incomplete} of them without a format"] if summary.incomplete else []
    words += [f"{summary.left} still arriving"] if summary.left else []
    words += [f"{summary.before} ended before"] if summary.before else []
    if not (summary.ended or summary.left or summary.before):
        words += ["no CT series of these dates fits the rules"]
    print(", ".join(words))
    return SOME_FAILED if counts["refused"] or counts["failed"] or summary.incomplete else DONE


def _seconds_or_none(text: str) -> float:
    return 0.0 if float(text) == 0 else seconds(text)
