"""Commands of the training layer."""

import argparse
import sys
from pathlib import Path

from ctseg.cli.console import log_to_standard_output
from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.exit_codes import TERMINATED
from ctseg.cli.parser import Parser, flags_worded
from ctseg.errors import InputError, SetupError
from ctseg.nnunet.variables import VARIABLES


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``dataset``, ``plan``, ``train``, ``find-best`` and ``results``.

    Names that nnU-Net's users type are aliases: ``nnUNetv2_X`` is ``ctseg X``.
    """
    _add_dataset(commands)
    _add_plan(commands)
    _add_train(commands)
    _add_find_best(commands)
    _add_results(commands)


def _paths_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("folders", "taken from the environment unless given")
    for variable in VARIABLES:
        group.add_argument(f"--{variable}", metavar="DIR", default=None)


def _overrides(args: argparse.Namespace) -> dict[str, str | None]:
    return {variable: getattr(args, variable) for variable in VARIABLES}


# dataset


def _add_dataset(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("dataset", help="build a data set for nnU-Net, and check it")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="from a folder of images and one of labels")
    create.add_argument("-d", dest="dataset", type=int, required=True, metavar="ID", help="1 to 999")
    create.add_argument("--name", required=True, help="DatasetXXX_NAME")
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
    _paths_arguments(create)
    create.set_defaults(run=_run_create)
    _add_verify_arguments(actions.add_parser("verify", help="tell all problems at once"))
    _add_verify_arguments(commands.add_parser("verify_dataset_integrity", help="as `dataset verify`"))


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or DatasetXXX_Name")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--no_nnunet_check", action="store_true", help="leave nnU-Net's own check out")
    _paths_arguments(parser)
    parser.set_defaults(run=_run_verify)


def _run_create(args: argparse.Namespace) -> int:
    from ctseg.files.dataset_cases import ScanFolders
    from ctseg.train.dataset import DatasetDescription, create_dataset
    from ctseg.train.dicom_labels import RegionRules
    from ctseg.train.paths import require_paths

    paths = require_paths({"nnUNet_raw"}, _overrides(args))
    if paths.raw is None:
        raise SetupError("nnUNet_raw is not set")
    order = None if args.regions_class_order is None else tuple(args.regions_class_order)
    folder = create_dataset(
        paths.raw,
        args.dataset,
        args.name,
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
    print(f"{folder}: {count} cases; next: `ctseg dataset verify -d {args.dataset}`")
    return 0


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

    paths = require_paths({"nnUNet_raw"}, _overrides(args))
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
    _paths_arguments(parser)
    parser.set_defaults(run=_run_plan)


def _run_plan(args: argparse.Namespace) -> int:
    from ctseg.train.paths import dataset_name, require_paths

    paths = require_paths({"nnUNet_raw", "nnUNet_preprocessed"}, _overrides(args))
    name = dataset_name(paths, args.dataset)
    _prepare_nnunet()
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


# train


def _add_train(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "train",
        help="train folds of a configuration, with any trainer of nnU-Net",
        description="Train. Several processes: `torchrun --nproc_per_node=2 -m ctseg train … --distributed=ddp`.",
    )
    parser.words_anywhere = "positional_folds"
    parser.add_argument("dataset", metavar="ID", help="id or DatasetXXX_Name")
    parser.add_argument("configuration", metavar="CONFIG", help="2d, 3d_fullres, 3d_lowres, …")
    parser.add_argument("positional_folds", nargs="*", metavar="FOLD", help="0 to 4, or `full` (every case)")
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="the same; `all` are the five folds")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainer", metavar="TRAINER")
    parser.add_argument(
        "-p", dest="plans", metavar="PLANS", help="default: nnUNetPlans; nnUNetSwinUNETRPlans for the Swin UNETR"
    )
    parser.add_argument(
        "-device", "--device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is a GPU"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="patches in one pass, over all processes together")
    parser.add_argument("--lr", type=float, metavar="LR", help="initial learning rate")
    parser.add_argument("--epochs", type=int, metavar="N")
    parser.add_argument("--iterations_per_epoch", type=int, metavar="N", help="optimizer steps in an epoch (250)")
    parser.add_argument(
        "--gradient_accumulation_steps", type=int, metavar="N", help="batches that make one optimizer step (1)"
    )
    amp = parser.add_mutually_exclusive_group()
    amp.add_argument(
        "--amp",
        action="store_true",
        default=None,
        help="mixed precision: float16 on CUDA (on by default), bfloat16 on the CPU (off by default)",
    )
    amp.add_argument("--no_amp", dest="amp", action="store_false", default=None, help="no mixed precision")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--npz", action="store_true", help="keep the validation's probabilities, for ensembles")
    parser.add_argument("--c", dest="resume", action="store_true", help="continue; no checkpoint is an error")
    parser.add_argument("--val", dest="validation_only", action="store_true", help="only run the validation again")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where there is a training already")
    parser.add_argument(
        "-pretrained_weights", "--pretrained_weights", type=Path, metavar="FILE", help="weights to begin with"
    )
    parser.add_argument("--distributed", choices=["ddp"], help="several processes, started by torchrun")
    _paths_arguments(parser)
    parser.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> int:
    from ctseg.nnunet.folds import parse_folds
    from ctseg.train.options import TrainingOptions
    from ctseg.train.paths import dataset_name, require_paths

    if bool(args.positional_folds) == bool(args.folds):
        raise SetupError("give the folds once: `ctseg train 101 3d_fullres 0`, or `-f 0 1`, or `-f all`")
    folds = parse_folds(args.folds or args.positional_folds, positional=not args.folds)
    for first, second in (("resume", "validation_only"), ("resume", "pretrained_weights"), ("resume", "overwrite")):
        if getattr(args, first) and getattr(args, second):
            raise SetupError(f"--c cannot go with --{'val' if second == 'validation_only' else second}")
    if args.pretrained_weights is not None and not args.pretrained_weights.is_file():
        raise SetupError(f"--pretrained_weights {args.pretrained_weights}: no such file")
    try:
        options = TrainingOptions(
            batch_size=args.batch_size,
            lr=args.lr,
            epochs=args.epochs,
            iterations_per_epoch=args.iterations_per_epoch,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            amp=args.amp,
            seed=args.seed,
        )
    except ValueError as error:
        raise SetupError(str(error)) from error
    paths = require_paths({"nnUNet_preprocessed", "nnUNet_results"}, _overrides(args))
    name = dataset_name(paths, args.dataset)
    _prepare_nnunet()
    from ctseg.train.launch import train
    from ctseg.train.names import default_plans
    from ctseg.train.options import Training
    from ctseg.train.placement import placed
    from ctseg.train.stopping import TrainingStopped

    training = Training(
        dataset=name,
        configuration=args.configuration,
        folds=folds,
        trainer=args.trainer,
        plans=args.plans or default_plans(args.trainer),
        options=options,
        resume=args.resume,
        overwrite=args.overwrite,
        validation_only=args.validation_only,
        save_probabilities=args.npz,
        pretrained_weights=args.pretrained_weights,
    )
    with placed(args.device, distributed=args.distributed == "ddp") as placement:
        try:
            train(training, paths, placement)
        except TrainingStopped as stopped:
            if placement.rank == 0:
                flags = flags_worded(stopped.settings, args.parser)
                print(f"{stopped}; it can go on ({flags})", file=sys.stderr)
            return TERMINATED
    return 0


def _prepare_nnunet() -> None:
    """What has to happen before nnU-Net is imported; and what ctseg logs is shown beside what nnU-Net prints."""
    from ctseg.train.worker_processes import limit_worker_processes

    limit_worker_processes()
    log_to_standard_output("ctseg.train")


# find-best, results


def _add_find_best(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "find-best",
        aliases=["find_best_configuration"],
        help="nnU-Net's best configuration and post-processing, as best.json",
    )
    parser.add_argument("dataset", metavar="ID", help="id or DatasetXXX_Name")
    _selection_arguments(parser)
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="default: best.json beside the models")
    parser.add_argument(
        "-np", dest="processes", type=int, metavar="N", help="worker processes (default: cores, up to 8)"
    )
    parser.add_argument("--disable_ensembling", action="store_true", help="compare single models only")
    parser.add_argument("--no_overwrite", action="store_true", help="keep what an earlier call has computed")
    _paths_arguments(parser)
    parser.set_defaults(run=_run_find_best)


def _selection_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", dest="configurations", nargs="+", metavar="CONFIG", help="default: all that were trained")
    parser.add_argument("-tr", dest="trainers", nargs="+", metavar="TRAINER", help="default: all that were trained")
    parser.add_argument("-p", dest="plans", nargs="+", metavar="PLANS", help="default: all that were trained")
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="default: all (the five folds)")


def _run_find_best(args: argparse.Namespace) -> int:
    from ctseg.nnunet.folds import parse_folds
    from ctseg.train.paths import dataset_name, require_paths

    folds = parse_folds(args.folds or ["all"])
    paths = require_paths({"nnUNet_preprocessed", "nnUNet_results"}, _overrides(args))
    name = dataset_name(paths, args.dataset)
    _prepare_nnunet()
    from ctseg.train.comparison import Comparison, find_best
    from ctseg.train.cross_validation import trained_models

    models = trained_models(paths, name, trainers=args.trainers, plans=args.plans, configurations=args.configurations)
    comparison = Comparison(
        models,
        folds,
        ensembles=not args.disable_ensembling,
        processes=args.processes,
        overwrite=not args.no_overwrite,
    )
    found = find_best(paths, name, comparison, output=args.output)
    best, file = found.best, found.file
    for one, score in found.scores.items():
        print(f"  Dice {score:.4f}  {one}")
    names = " and ".join(member.folder_name for member in best.members)
    steps = "; ".join(f"keep the largest component of labels {list(s.labels)}" for s in best.postprocessing) or "none"
    what = "best ensemble" if best.is_ensemble else "best model"
    print(f"{what}: {names}: Dice {best.dice:.4f}, {best.dice_postprocessed:.4f} with post-processing: {steps}")
    for member in best.members:
        if member.previous_stage:
            first = member.model_copy(update={"configuration": member.previous_stage}).folder_name
            print(f"{member.folder_name} is a second stage: each scan goes through {first} first")
    print(f"{file}\nnext: `ctseg export --from {file} -o bundle`")
    return 0


def _add_results(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("results", help="Dice of the cross-validation, by label and fold")
    parser.add_argument("dataset", metavar="ID", help="id or DatasetXXX_Name")
    _selection_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    _paths_arguments(parser)
    parser.set_defaults(run=_run_results)


def _run_results(args: argparse.Namespace) -> int:
    from ctseg.nnunet.folds import parse_folds
    from ctseg.train.cross_validation import results_table, trained_models
    from ctseg.train.paths import dataset_name, require_paths

    paths = require_paths({"nnUNet_results"}, _overrides(args))
    name = dataset_name(paths, args.dataset)
    models = trained_models(paths, name, trainers=args.trainers, plans=args.plans, configurations=args.configurations)
    table = results_table(name, models, None if args.folds is None else parse_folds(args.folds))
    print(table.to_json() if args.json else table)
    return 0
