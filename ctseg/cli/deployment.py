"""``ctseg deploy``: from a colleague's zip to a model that is served, in one step."""

import argparse
from pathlib import Path

from ctseg.cli.deploy import checkpoint_file
from ctseg.cli.parser import Parser
from ctseg.cli.stages import shown_stages


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``deploy``."""
    parser = commands.add_parser(
        "deploy",
        help="a trained model's zip to an entry of a model repository: export, build, prove",
        description="Export a trained nnU-Net, build it for this machine into a Triton model repository, and prove at "
        "each step that it gives PyTorch's labels. Nothing is left where a step fails.",
    )
    parser.add_argument("model", type=Path, help="nnU-Net's zip (nnUNetv2_export_model_to_zip), or a results folder")
    parser.add_argument("--repository", type=Path, required=True, help="Triton's model repository")
    parser.add_argument(
        "--cases", type=Path, nargs="+", default=[], metavar="SCAN",
        help="scans (or folders) to prove it with; default: nnU-Net's preprocessed training data",
    )  # fmt: skip
    parser.add_argument("--name", help="name of the model; default: the data set's")
    parser.add_argument(
        "-c", "--configuration", nargs="+", default=[], metavar="CONFIG",
        help="which configuration, where there are several; `best`: what nnU-Net found best; more than one: their "
        "ensemble",
    )  # fmt: skip
    parser.add_argument("-tr", "--trainer", help="which trainer, where there are several")
    parser.add_argument("-p", "--plans", help="which plans, where there are several")
    parser.add_argument(
        "-f", "--folds", nargs="+", metavar="FOLD", help="numbers, `all` (the five folds) or `full`; default: all there"
    )
    parser.add_argument(
        "-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s; also `final`, `best`"
    )
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32", help="default: %(default)s")
    parser.add_argument(
        "--backend", choices=["auto", "python", "tensorrt"], default="auto",
        help="auto: tensorrt where this machine has a GPU and the server's TensorRT, else python, on the CPU",
    )  # fmt: skip
    parser.add_argument(
        "--trust_checkpoint", action="store_true",
        help="load checkpoints, classes and trainers that could run code of whoever made them, with your rights",
    )  # fmt: skip
    parser.set_defaults(run=_run_deploy)


def _run_deploy(args: argparse.Namespace) -> int:
    from ctseg.deploy.extra import require_extra

    require_extra()
    from ctseg.deploy.deployment import DeployOptions, deploy
    from ctseg.nnunet.folds import parse_folds
    from ctseg.nnunet.results_folder import Choice

    options = DeployOptions(
        name=args.name,
        configurations=tuple(args.configuration),
        choice=Choice(trainer=args.trainer, plans=args.plans),
        folds=tuple(parse_folds(args.folds)) if args.folds else None,
        checkpoint=checkpoint_file(args.checkpoint),
        precision=args.precision,
        backend=args.backend,
        trust=args.trust_checkpoint,
    )
    with shown_stages() as tell:
        deployed = deploy(args.model, args.repository, options, scans=args.cases, report=tell)
    print(f"{args.repository / deployed.name}: version {deployed.version}, {deployed.backend}, {deployed.proven}")
    if deployed.backend == "python":
        print(f"next: `ctseg predict -i scans -o labels -m {deployed.name} --repository {args.repository}`")
    else:
        print(f"next: serve {args.repository} (docs/containers.md), then `ctseg predict … -m {deployed.name} --url …`")
    return 0
