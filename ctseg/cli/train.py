"""Commands that train, and that compare what was trained."""

import argparse
import sys
from pathlib import Path

from ctseg.cli.nnunet import add_folders, given_folders, prepare_nnunet, told_on_terminal
from ctseg.cli.parser import Parser, flags_worded
from ctseg.errors import SetupError

_NOT_TOGETHER = (
    ("resume", ("validation_only", "pretrained_weights", "overwrite")),
    ("skip_validation", ("validation_only", "npz", "disable_tta", "val_best")),
    ("disable_checkpointing", ("resume", "validation_only", "val_best", "overwrite")),
)
"""Settings of a training; the first of each row goes with none of the others."""


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``train``, ``find-best`` and ``results``.

    Names that nnU-Net's users type are aliases: ``nnUNetv2_X`` is ``ctseg X``.
    """
    _add_train(commands)
    _add_find_best(commands)
    _add_results(commands)


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
    parser.add_argument("--skip_validation", action="store_true", help="leave the validation at the end out")
    parser.add_argument(
        "--disable_tta", action="store_true", help="no mirroring in the final validation: faster, not nnU-Net's numbers"
    )
    parser.add_argument(
        "-val_best", "--val_best", action="store_true", help="validate with checkpoint_best, not checkpoint_final"
    )
    parser.add_argument(
        "--disable_checkpointing", action="store_true", help="save nothing: to try things out; nothing can go on"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where there is a training already")
    parser.add_argument(
        "-pretrained_weights", "--pretrained_weights", type=Path, metavar="FILE", help="weights to begin with"
    )
    parser.add_argument("--distributed", choices=["ddp"], help="several processes, started by torchrun")
    parser.add_argument("-num_gpus", type=int, default=1, metavar="N", help="1; several are torchrun's, see above")
    add_folders(parser)
    parser.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> int:
    from ctseg.nnunet.folds import parse_folds
    from ctseg.train.options import TrainingOptions
    from ctseg.train.paths import dataset_name, require_paths

    if args.configuration.isdecimal() or args.configuration in ("all", "full"):
        raise SetupError(
            f"{args.configuration!r} stands where the configuration goes: `ctseg train {args.dataset} 3d_fullres "
            f"{args.configuration}`"
        )
    if bool(args.positional_folds) == bool(args.folds):
        raise SetupError("give the folds once: `ctseg train 101 3d_fullres 0`, or `-f 0 1`, or `-f all`")
    folds = parse_folds(args.folds or args.positional_folds, positional=not args.folds)
    for one, others in _NOT_TOGETHER:
        for other in others:
            if getattr(args, one) and getattr(args, other):
                both = [args.parser.flag_of(setting) for setting in (one, other)]
                raise SetupError(f"{both[0]} cannot go with {both[1]}")
    if args.num_gpus > 1:
        raise SetupError(
            f"-num_gpus {args.num_gpus}: several GPUs are used by `torchrun --nproc_per_node={args.num_gpus} -m ctseg "
            "train … --distributed=ddp`"
        )
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
        raise SetupError(str(error), settings=tuple(str(error).split()[:1])) from error
    paths = require_paths({"nnUNet_preprocessed", "nnUNet_results"}, given_folders(args))
    name = dataset_name(paths, args.dataset)
    prepare_nnunet()
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
        skip_validation=args.skip_validation,
        disable_tta=args.disable_tta,
        val_best=args.val_best,
        disable_checkpointing=args.disable_checkpointing,
    )
    with placed(args.device, distributed=args.distributed == "ddp") as placement:
        try:
            train(training, paths, placement)
        except TrainingStopped as stopped:
            if placement.rank == 0:
                flags = flags_worded(stopped.settings, args.parser)
                print(f"{stopped}{f'; it can go on ({flags})' if flags else ''}", file=sys.stderr)
            return 128 + stopped.number
    return 0


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
    add_folders(parser)
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
    paths = require_paths({"nnUNet_preprocessed", "nnUNet_results"}, given_folders(args))
    name = dataset_name(paths, args.dataset)
    prepare_nnunet()
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
    parser = commands.add_parser("results", help="Dice and surfaces of the cross-validation, by label")
    parser.add_argument("dataset", metavar="ID", help="id or DatasetXXX_Name")
    _selection_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument(
        "--html",
        action="store_true",
        help="write results.html too: folds, training curves, and a picture of every validated case, the worst first",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="DIR",
        help="of results.html (default: the data set's in nnUNet_results)",
    )
    parser.add_argument("--no_surfaces", action="store_true", help="Dice alone: no label map is read")
    add_folders(parser)
    parser.set_defaults(run=_run_results)


def _run_results(args: argparse.Namespace) -> int:
    from ctseg.nnunet.folds import parse_folds
    from ctseg.train.cross_validation import results_table, trained_models
    from ctseg.train.paths import dataset_name, require_paths

    paths = require_paths({"nnUNet_results"}, given_folders(args))
    name = dataset_name(paths, args.dataset)
    models = trained_models(paths, name, trainers=args.trainers, plans=args.plans, configurations=args.configurations)
    folds = None if args.folds is None else parse_folds(args.folds)
    table = results_table(name, models, folds, None if args.no_surfaces else paths)
    print(table.to_json() if args.json else table)
    if args.html:
        from ctseg.files.folders import make_folder
        from ctseg.train.results_page import look_at_results, write_results_page

        looks = look_at_results(paths, table, models, on_case=told_on_terminal())
        folder = args.output or models[0].folder.parent
        make_folder(folder)
        page = write_results_page(name, looks, folder)
        print(page, file=sys.stderr if args.json else sys.stdout)
    return 0
