"""Commands that make a data set, check it, plan and preprocess it."""

import argparse
import sys
from pathlib import Path

from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.nnunet import add_folders, given_folders, prepare_nnunet
from ctseg.cli.overview import add_overview
from ctseg.cli.parser import Parser
from ctseg.errors import InputError, SetupError


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``dataset`` and ``plan``, and nnU-Net's names for them."""
    _add_dataset(commands)
    _add_plan(commands)


# dataset


def _add_dataset(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("dataset", help="build a data set for nnU-Net, and check it")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="from a folder of images and one of labels")
    create.add_argument("-d", dest="dataset", required=True, metavar="ID", help="1 to 999, or DatasetXXX_Name")
    create.add_argument("--name", help="of DatasetXXX_NAME, where the id alone is given")
    create.add_argument("--images", type=Path, required=True, metavar="DIR", help="NIfTI, NRRD, MHA; or DICOM series")
    create.add_argument(
        "--labels", type=Path, required=True, metavar="DIR",
        help="label maps; or DICOM segmentations and structure sets; may be the same folder",
    )  # fmt: skip
    create.add_argument("--image_suffix", nargs="+", metavar="END", help="end of the names, per channel: _ct")
    create.add_argument("--label_suffix", default="", metavar="END", help="end of the names of label maps: _gtv")
    create.add_argument("--test_images", type=Path, metavar="DIR", help="becomes imagesTs")
    create.add_argument(
        "--label",
        action="append",
        required=True,
        metavar="NAME=VALUE",
        help="once per label, without the background; several values (whole=1,2) make a region",
    )
    create.add_argument("--regions_class_order", type=int, nargs="+", metavar="VALUE", help="what each region writes")
    create.add_argument("--channel", action="append", metavar="NAME", help="once per channel, in order (default: CT)")
    create.add_argument(
        "--roi", action="append", default=[], metavar="LABEL=NAME",
        help="what the label's segment or region is called in DICOM: * is any text, capitals do not matter "
        "(default: as the label)",
    )  # fmt: skip
    create.add_argument(
        "--precedence", nargs="+", default=[], metavar="LABEL",
        help="labels in the order in which they win where segments or regions overlap",
    )  # fmt: skip
    create.add_argument(
        "--missing_is_empty", action="store_true",
        help="take a label that no object of a case has as nowhere in it, with a warning (default: refuse the case)",
    )  # fmt: skip
    add_dicom(create)
    add_folders(create)
    create.set_defaults(run=_run_create)
    _add_verify_arguments(actions.add_parser("verify", help="tell all problems at once"))
    add_overview(actions)
    _add_verify_arguments(commands.add_parser("verify_dataset_integrity", help="as `dataset verify`"))


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or DatasetXXX_Name")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--no_nnunet_check", action="store_true", help="leave nnU-Net's own check out")
    add_folders(parser)
    parser.set_defaults(run=_run_verify)


def _run_create(args: argparse.Namespace) -> int:
    from ctseg.files.dataset_cases import ScanFolders
    from ctseg.train.creation import create_dataset
    from ctseg.train.description import DatasetDescription
    from ctseg.train.dicom_labels import RegionRules
    from ctseg.train.paths import require_paths

    paths = require_paths({"nnUNet_raw"}, given_folders(args))
    if paths.raw is None:
        raise SetupError("nnUNet_raw is not set")
    number, name = _id_and_name(args.dataset, args.name)
    order = None if args.regions_class_order is None else tuple(args.regions_class_order)
    folder = create_dataset(
        paths.raw,
        number,
        name,
        DatasetDescription(tuple(args.channel or ["CT"]), _labels(args.label), order),
        ScanFolders(
            images=args.images,
            labels=args.labels,
            image_suffixes=None if args.image_suffix is None else tuple(args.image_suffix),
            label_suffix=args.label_suffix,
            test_images=args.test_images,
            series=series_rules(args),
            case_name_from=tuple(args.case_name_from),
        ),
        RegionRules(_names(args.roi), tuple(args.precedence), args.missing_is_empty),
    )
    count = sum(1 for _ in (folder / "labelsTr").iterdir())
    print(f"{folder}: {count} cases; next: `ctseg dataset verify -d {number}`")
    return 0


def _id_and_name(words: str, name: str | None) -> tuple[int, str]:
    """Return the id and the name of a new data set, of which ``DatasetXXX_Name`` has both."""
    from ctseg.train.paths import split_dataset_name

    number, said = split_dataset_name(words)
    if number is None:
        if not words.isdecimal():
            raise SetupError(f"-d {words}: expected an id from 1 to 999, or DatasetXXX_Name")
        number, said = int(words), ""
    if name is None and not said:
        raise SetupError(f"-d {words}: the data set needs a name, too: --name Lungs makes Dataset{number:03d}_Lungs")
    if name is not None and said and split_dataset_name(name)[1] != said:
        raise SetupError(f"-d {words} and --name {name} are two names: give the name once")
    return number, name or said


def _labels(words: list[str]) -> dict[str, int | list[int]]:
    labels: dict[str, int | list[int]] = {"background": 0}
    for word in words:
        name, equals, value = word.rpartition("=")
        values = value.split(",")
        if not equals or not name or not all(part.isdecimal() for part in values):
            raise SetupError(f"--label {word}: expected NAME=VALUE or NAME=VALUE,VALUE")
        numbers = [int(part) for part in values]
        if name in labels and labels[name] != numbers[0]:
            raise SetupError(f"--label {word}: {name} is given twice")
        labels[name] = numbers[0] if len(numbers) == 1 else numbers
    return labels


def _names(words: list[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for word in words:
        label, equals, name = word.partition("=")
        if not equals or not label or not name:
            raise SetupError(f"--roi {word}: expected LABEL=NAME")
        if label in names:
            raise SetupError(f"--roi {word}: {label} is given twice; * stands for any text")
        names[label] = name
    return names


def _run_verify(args: argparse.Namespace) -> int:
    from ctseg.train.paths import dataset_name, require_paths
    from ctseg.train.verify import verify_dataset

    paths = require_paths({"nnUNet_raw"}, given_folders(args))
    if paths.raw is None:
        raise SetupError("nnUNet_raw is not set")
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
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check the data set first")
    parser.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    parser.add_argument("--clean", action="store_true", help="extract the fingerprint anew")
    parser.add_argument("--overwrite", action="store_true", help="change what a training goes on with, too")
    add_folders(parser)
    parser.set_defaults(run=_run_plan)


def _run_plan(args: argparse.Namespace) -> int:
    from ctseg.train.paths import dataset_name, require_paths

    paths = require_paths({"nnUNet_raw", "nnUNet_preprocessed"}, given_folders(args))
    name = dataset_name(paths, args.dataset)
    prepare_nnunet()
    from ctseg.train.planning import Planning, plan_dataset, summary

    default = Planning()
    planning = Planning(
        planners=tuple(args.planners or default.planners),
        configurations=tuple(args.configurations or default.configurations),
        gpu_memory_gb=args.gpu_memory_gb,
        processes=args.processes,
        preprocess=not args.no_pp,
        clean=args.clean,
        verify=args.verify_dataset_integrity,
        overwrite=args.overwrite,
        lowres=args.lowres,
    )
    try:
        planned = plan_dataset(name, paths, planning)
    except InputError as error:
        print(f"InputError: {error}", file=sys.stderr)
        return 1
    for identifier, model in planned.kept.data.items():
        print(f"{identifier}: nothing to do, {model} was trained on these cases")
    for plans, model in planned.kept.plans.items():
        print(f"{plans}: nothing to do, the plans are those of {model}")
    for file in planned.files:
        print(f"{file}  (train with -p {file.stem})\n{summary(file)}")
    return 0
