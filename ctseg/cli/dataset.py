"""Commands that make a data set, check it, plan and preprocess it."""

import argparse
import sys

from ctseg.cli.console import without_controls
from ctseg.cli.dataset_creation import add_create
from ctseg.cli.nnunet import add_folders, given_folders
from ctseg.cli.overview import add_overview
from ctseg.cli.parser import Parser, worded
from ctseg.cli.stages import shown_stages
from ctseg.errors import InputError, SetupError


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``dataset`` and ``plan``, and nnU-Net's names for them."""
    _add_dataset(commands)
    _add_plan(commands)


# dataset


def _add_dataset(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("dataset", help="build a data set for nnU-Net, and check it")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add_create(actions)
    _add_verify_arguments(actions.add_parser("verify", help="tell all problems at once"))
    add_overview(actions)
    _add_verify_arguments(commands.add_parser("verify_dataset_integrity", help="as `dataset verify`"))


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or DatasetXXX_Name")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--no_nnunet_check", action="store_true", help="leave nnU-Net's own check out")
    add_folders(parser)
    parser.set_defaults(run=_run_verify)


def _run_verify(args: argparse.Namespace) -> int:
    from ctseg.train.paths import dataset_name, require_paths
    from ctseg.train.verify import verify_dataset

    paths = require_paths({"nnUNet_raw"}, given_folders(args))
    if paths.raw is None:
        raise SetupError("nnUNet_raw is not set")
    with shown_stages():
        report = verify_dataset(paths.raw / dataset_name(paths, args.dataset), nnunet_check=not args.no_nnunet_check)
    print(report.to_json() if args.json else report)
    return 1 if report.problems else 0


# plan


def _add_plan(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "plan",
        aliases=["plan_and_preprocess"],
        help="plan and preprocess: nnU-Net's plans and the Swin UNETR's",
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or DatasetXXX_Name")
    parser.add_argument(
        "-pl",
        dest="planners",
        nargs="+",
        metavar="PLANNER",
        help="planner classes; default: ExperimentPlanner (nnU-Net's) and nnUNetPlannerSwinUNETR; "
        "nnUNetPlannerResEncM, -L, -XL and others by name",
    )
    parser.add_argument("-c", dest="configurations", nargs="+", metavar="CONFIG", help="what to preprocess")
    parser.add_argument(
        "-np", dest="processes", type=int, metavar="N", help="worker processes (default: cores, up to 8)"
    )
    parser.add_argument(
        "--gpu_memory_gb",
        type=float,
        metavar="GB",
        help="memory of the GPU to plan for (default: this machine's, or 16)",
    )
    parser.add_argument(
        "--lowres",
        action="store_true",
        help="plan 3d_lowres and 3d_cascade_fullres also for images so small that the planner makes none",
    )
    parser.add_argument(
        "--verify_dataset_integrity", dest="verify", action="store_true",
        help="look at the images' voxels first, too, and let nnU-Net's own check run (default: names, dataset.json, "
        "headers and label maps)",
    )  # fmt: skip
    parser.add_argument("--no_check", dest="check", action="store_false", help="do not look at the data set first")
    parser.add_argument(
        "--group_by", metavar="RULE",
        help="which cases are of one patient and stay in one fold, as in `dataset create`; writes splits_final.json",
    )  # fmt: skip
    parser.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    parser.add_argument("--clean", action="store_true", help="extract the fingerprint anew")
    parser.add_argument("--overwrite", action="store_true", help="change what a training goes on with, too")
    add_folders(parser)
    parser.set_defaults(run=_run_plan)


def _run_plan(args: argparse.Namespace) -> int:
    from ctseg.train.paths import dataset_name, require_paths
    from ctseg.train.worker_processes import limit_worker_processes

    paths = require_paths({"nnUNet_raw", "nnUNet_preprocessed"}, given_folders(args))
    name = dataset_name(paths, args.dataset)
    if args.processes is not None and args.processes < 1:
        raise SetupError(f"-np {args.processes}: expected 1 or more")
    if args.gpu_memory_gb is not None and args.gpu_memory_gb <= 0:
        raise SetupError(f"--gpu_memory_gb {args.gpu_memory_gb:g}: expected more than 0")
    limit_worker_processes()
    from ctseg.train.planning import Planning, plan_dataset, summary

    default = Planning()
    planning = Planning(
        planners=tuple(args.planners or default.planners),
        configurations=tuple(args.configurations or default.configurations),
        gpu_memory_gb=args.gpu_memory_gb,
        processes=args.processes,
        preprocess=not args.no_pp,
        clean=args.clean,
        check=args.check,
        verify=args.verify,
        group_by=args.group_by,
        overwrite=args.overwrite,
        lowres=args.lowres,
    )
    try:
        with shown_stages():
            planned = plan_dataset(name, paths, planning)
    except InputError as error:
        print(without_controls(worded(error, args.parser)), file=sys.stderr)
        return 1
    for identifier, model in planned.kept.data.items():
        print(f"{identifier}: nothing to do, {model} was trained on these cases")
    for plans, model in planned.kept.plans.items():
        print(f"{plans}: nothing to do, the plans are those of {model}")
    for file in planned.files:
        print(f"{file}  (train with -p {file.stem})\n{summary(file)}")
    return 0
