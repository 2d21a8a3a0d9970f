"""Commands of the deployment layer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctseg.model_spec import KeepLargest


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``export``, ``build``, ``serve`` and ``doctor``."""
    _add_export(commands)
    _add_build(commands)
    _add_serve(commands)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "export",
        help="trained nnU-Net to a bundle: ONNX, proven against PyTorch",
        description="Write the bundle of a trained nnU-Net: spec, ONNX, and the proof that it gives PyTorch's labels.",
        allow_abbrev=False,
    )
    source = parser.add_argument_group("the trained model")
    source.add_argument(
        "-i", "--input", type=Path, help="results folder (trainer__plans__configuration, or above it), or nnU-Net's zip"
    )
    source.add_argument("-d", "--dataset", help="data set in nnUNet_results: its number or its name")
    source.add_argument("--from", dest="best", type=Path, metavar="BEST_JSON", help="what `ctseg find-best` chose")
    source.add_argument("-c", "--configuration", help="which configuration, where there are several")
    source.add_argument("-tr", "--trainer", help="which trainer, where there are several")
    source.add_argument("-p", "--plans", help="which plans, where there are several")
    source.add_argument(
        "-f",
        "--folds",
        nargs="+",
        metavar="FOLD",
        help="numbers, `all` (the five folds) or `full`; default: what is there",
    )
    source.add_argument(
        "-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s; also `final`, `best`"
    )
    source.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints, classes and trainers that could run code of whoever made them, with your rights",
    )
    target = parser.add_argument_group("the bundle")
    target.add_argument("-o", "--output", type=Path, required=True, help="folder of the bundle")
    target.add_argument("--name", help="name of the model in Triton; default: the data set's")
    target.add_argument(
        "--precision",
        nargs="+",
        default=["fp32"],
        choices=["fp32", "fp16"],
        help="networks to write; fp32 is always written",
    )
    target.add_argument("--fp16-output", action="store_true", help="let the FP16 network answer in FP16: half the wire")
    target.add_argument(
        "--tta",
        choices=["graph", "client", "none"],
        default="client",
        help="where mirroring happens; default: %(default)s",
    )
    target.add_argument("--opset", type=int, default=17, help="ONNX operator set; default: %(default)s")
    target.add_argument(
        "--max-batch-size", type=int, default=4, help="most patches in one request; default: %(default)s"
    )
    target.add_argument(
        "--cases",
        type=Path,
        nargs="+",
        default=[],
        help="scans (or folders) to prove the graphs with; default: nnU-Net's preprocessed training data",
    )
    target.add_argument("--accept-unproven", action="store_true", help="write networks that failed, marked as unproven")
    parser.set_defaults(run=_run_export)


def _run_export(args: argparse.Namespace) -> int:
    from ctseg.deploy.trained_model import require_extra

    require_extra()
    from ctseg.deploy.export import ExportOptions, export_model
    from ctseg.deploy.parity_cases import prepare_scans, preprocessed_cases
    from ctseg.deploy.trained_model import load_trained_model
    from ctseg.folds import parse_folds

    path, wanted, postprocessing, folds = _chosen(args)
    checkpoint = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}.get(args.checkpoint, args.checkpoint)
    model = load_trained_model(
        path,
        **wanted,
        folds=parse_folds(args.folds) if args.folds else folds,
        checkpoint=checkpoint,
        postprocessing=postprocessing,
        trust=args.trust_checkpoint,
    )
    options = ExportOptions(
        name=args.name,
        mirroring=args.tta,
        precisions=tuple(args.precision),
        fp16_output=args.fp16_output,
        opset=args.opset,
        max_batch_size=args.max_batch_size,
        accept_unproven=args.accept_unproven,
    )
    if args.cases:
        spec = model.spec(name=args.name or model.default_name, mirroring="none", max_batch_size=1)
        cases, source = prepare_scans(args.cases, spec), "scans"
    else:
        cases, source = preprocessed_cases(model), "nnU-Net's preprocessed training data"
    bundle = export_model(model, args.output, options, cases=cases, data_source=source, report=print)
    states = ", ".join(f"{item.precision} {'proven' if item.proven else 'UNPROVEN'}" for item in bundle.report.variants)
    print(f"{bundle.folder}: {states}; parity/ holds patient data; details in parity.md")
    return 0


def _chosen(
    args: argparse.Namespace,
) -> "tuple[Path, dict[str, str | None], tuple[KeepLargest, ...], tuple[int, ...] | None]":
    """Return where the trained model is, which one, its post-processing and its folds."""
    import os

    from ctseg.best import Best
    from ctseg.errors import SetupError

    if sum(item is not None for item in (args.input, args.dataset, args.best)) != 1:
        raise SetupError("give the trained model by exactly one of -i FOLDER_OR_ZIP, -d DATASET, --from BEST_JSON")
    wanted = {"configuration": args.configuration, "trainer": args.trainer, "plans": args.plans}
    if args.input is not None:
        return args.input, wanted, (), None
    results = os.environ.get("nnUNet_results")  # noqa: SIM112 (nnU-Net's name)
    if not results:
        raise SetupError("nnUNet_results is not set: `export nnUNet_results=/a/folder`, or give the folder by -i")
    if args.dataset is not None:
        pattern = f"Dataset{int(args.dataset):03d}_*" if args.dataset.isdecimal() else args.dataset
        found = sorted(path for path in Path(results).glob(pattern) if path.is_dir())
        if len(found) != 1:
            raise SetupError(f"data set {args.dataset}: {len(found)} folders fit {pattern} in {results}")
        return found[0], wanted, (), None
    best = Best.read(args.best)
    member = best.members[0]
    folder = Path(results) / best.dataset / member.folder_name
    return folder, dict.fromkeys(wanted), best.postprocessing, best.folds


def _add_build(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "build",
        help="bundle to an entry of a Triton model repository, proven on this machine",
        description="Build an entry of a Triton model repository from a bundle, on the machine that will serve it.",
        allow_abbrev=False,
    )
    parser.add_argument("bundle", type=Path, help="folder that `ctseg export` wrote")
    parser.add_argument("--repository", type=Path, help="Triton's model repository")
    parser.add_argument(
        "--backend", choices=["python", "onnxruntime", "tensorrt"], default="python", help="default: %(default)s"
    )
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32", help="default: %(default)s")
    parser.add_argument("--name", help="name of the model; default: the bundle's")
    parser.add_argument("--version", type=int, help="version number; default: the next free one")
    parser.add_argument(
        "--runtime", choices=["onnxruntime", "openvino"], help="of the python backend; default: the fastest that passes"
    )
    parser.add_argument("--max-batch-size", type=int, help="most patches in one request; default: the bundle's")
    parser.add_argument("--instances", type=int, default=1, help="instances of the model; default: %(default)s")
    parser.add_argument(
        "--max-queue-delay-us",
        type=int,
        default=2000,
        help="wait to join requests, in microseconds; default: %(default)s",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of an instance (python backend); default: all"
    )
    parser.add_argument("--warmup", action="store_true", help="let Triton run one batch before the model is ready")
    parser.add_argument("--if-needed", action="store_true", help="build only if input, tools or machine differ")
    parser.add_argument("--accept-unproven", action="store_true", help="write what failed the gate, marked as unproven")
    parser.set_defaults(run=_run_build)


def _run_build(args: argparse.Namespace) -> int:
    from ctseg.deploy.build import BuildOptions, build_entry
    from ctseg.errors import SetupError

    if args.repository is None:
        raise SetupError("give --repository DIR")
    options = BuildOptions(
        backend=args.backend,
        precision=args.precision,
        name=args.name,
        version=args.version,
        runtime=args.runtime,
        max_batch_size=args.max_batch_size,
        instance_count=args.instances,
        max_queue_delay_us=args.max_queue_delay_us,
        threads=args.threads,
        warmup=args.warmup,
        if_needed=args.if_needed,
        accept_unproven=args.accept_unproven,
    )
    entry = build_entry(args.bundle, args.repository, options, report=print)
    newest = entry.newest
    print(f"{newest.folder}: {entry.backend}, {newest.spec.precision}, parity {newest.spec.parity.state}")
    return 0


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="run Triton on a model repository, on this machine only",
        description="Run a tritonserver on a model repository, on loopback; for production use Dockerfile.serve.",
        allow_abbrev=False,
    )
    parser.add_argument("--repository", type=Path, required=True, help="Triton's model repository")
    parser.add_argument("--watch", action="store_true", help="serve new versions while running")
    parser.add_argument("--grpc-port", type=int, default=8001, help="0 takes a free one; default: %(default)s")
    parser.add_argument("--metrics-port", type=int, help="serve metrics on this port; default: no metrics")
    parser.add_argument(
        "--start-timeout-s", type=float, default=300.0, help="longest time until it is ready; default: %(default)s"
    )
    parser.set_defaults(run=_run_serve)


def _run_serve(args: argparse.Namespace) -> int:
    from ctseg.deploy.server import run_server

    return run_server(
        args.repository,
        watch=args.watch,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        start_timeout_s=args.start_timeout_s,
    )
