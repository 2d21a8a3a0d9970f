"""Commands of the client: ``predict``."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.console import add_verbosity
from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.exit_codes import DONE, SOME_FAILED, WENT_AWAY
from ctseg.cli.parser import Parser, flags_worded
from ctseg.cli.report import counted
from ctseg.cli.segmenting import (
    add_limits,
    add_output,
    add_rows,
    add_server,
    header_variables,
    model_of,
    wrong_values_told,
)
from ctseg.errors import SetupError

if TYPE_CHECKING:
    from ctseg.predict.parts import Part
    from ctseg.predict.report import Report

_NAMES_TOLD = 20


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
    groups = (add_server, _add_segmentation, add_dicom, add_output, _add_parts, _add_dask, add_limits)
    for add_group in groups:
        add_group(predict)
    add_verbosity(predict)
    predict.set_defaults(run=_run)


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
    add_rows(how)
    how.add_argument("--save_probabilities", action="store_true", help="write <case>.npz beside each label map")
    agreement = how.add_mutually_exclusive_group()
    agreement.add_argument(
        "--agreement", action="store_true", default=None,
        help="write into report.json how far the folds agree on each label, of models that say so (docs/agreement.md; "
        "default: only where whole scans are sent, since nothing travels for it then)",
    )  # fmt: skip
    agreement.add_argument("--no_agreement", dest="agreement", action="store_false", help="never")
    how.add_argument(
        "--c", "--continue_prediction", dest="continue_prediction", action="store_true",
        help="skip cases that are done: the same scan, the same model, the same options; also joins a run that works "
        "in the same output folder",
    )  # fmt: skip
    how.add_argument(
        "--overwrite", action="store_true",
        help="replace label maps that ctseg has not made, or that were changed since; without it they are kept",
    )  # fmt: skip


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


def _run(args: argparse.Namespace) -> int:
    from ctseg.files.codes import read_codes
    from ctseg.predict.options import BatchOptions
    from ctseg.predict.progress import progress_for

    codes = {} if args.codes is None else read_codes(args.codes)
    with wrong_values_told():
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
            dicom_rows=args.dicom_rows,
            prev_stage_predictions=args.prev_stage_predictions,
            output_formats=None if args.output_formats is None else tuple(args.output_formats),
            segmentation_type=args.segmentation_type,
            codes=codes,
            codes_required=args.codes_required,
            agreement=args.agreement,
        )
        model = model_of(args)
    report = _runner(args)(
        args.input, args.output, model, options, progress_for=lambda cases: progress_for(cases, quiet=args.quiet)
    )
    return _summarise(report, args)


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
    return partial(segment_folder_on_dask, scheduler=scheduler, header_variables=header_variables(args.headers))


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
