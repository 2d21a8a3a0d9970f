"""Commands of the deployment layer."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ctseg.cli.parser import Parser, flags_worded
from ctseg.cli.stages import shown_stages

if TYPE_CHECKING:
    from ctseg.model_spec import KeepLargest
    from ctseg.nnunet.results_folder import Choice


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``export``, ``build``, ``serve`` and ``doctor``."""
    _add_export(commands)
    _add_build(commands)
    _add_serve(commands)
    _add_doctor(commands)


def _add_export(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "export",
        help="trained nnU-Net to a bundle: ONNX, proven against PyTorch",
        description="Write the bundle of a trained nnU-Net: spec, ONNX, and the proof that it gives PyTorch's labels.",
    )
    source = parser.add_argument_group("the trained model")
    source.add_argument(
        "-i", "--input", type=Path, help="results folder (trainer__plans__configuration, or above it), or nnU-Net's zip"
    )
    source.add_argument("-d", "--dataset", help="data set in nnUNet_results: its number or its name")
    source.add_argument("--from", dest="best", type=Path, metavar="BEST_JSON", help="what `ctseg find-best` chose")
    source.add_argument(
        "-c", "--configuration", nargs="+", metavar="CONFIG",
        help="which configuration, where there are several; more than one: their ensemble, in this order",
    )  # fmt: skip
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
        "--trust_checkpoint",
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
        choices=["fp32", "fp16", "bf16"],
        help="networks to write; fp32 is always written",
    )
    target.add_argument("--fp16_output", action="store_true", help="let the FP16 network answer in FP16: half the wire")
    target.add_argument(
        "--tta",
        choices=["graph", "client", "none"],
        default="client",
        help="where mirroring happens; default: %(default)s",
    )
    target.add_argument("--opset", type=int, default=17, help="ONNX operator set; default: %(default)s")
    target.add_argument(
        "--max_batch_size", type=int, default=4, help="most patches in one request; default: %(default)s"
    )
    target.add_argument(
        "--cases",
        type=Path,
        nargs="+",
        default=[],
        help="scans (or folders) to prove the graphs with; default: nnU-Net's preprocessed training data",
    )
    target.add_argument("--accept_unproven", action="store_true", help="write networks that failed, marked as unproven")
    target.add_argument(
        "--codes", type=Path, metavar="FILE", help="codes of labels for DICOM, JSON or CSV, see docs/dicom.md"
    )
    target.add_argument(
        "--no_votes", dest="votes", action="store_false",
        help="leave out how folds vote, by which predict --agreement says how far they agree; one fold has none",
    )  # fmt: skip
    parser.set_defaults(run=_run_export)


def checkpoint_file(name: str) -> str:
    """Return the name of a checkpoint's file, for which ``final`` and ``best`` are short."""
    return {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}.get(name, name)


def _run_export(args: argparse.Namespace) -> int:
    from ctseg.deploy.extra import require_extra

    require_extra()
    with shown_stages() as tell:
        done = _export(args, tell)
    print(done)
    return 0


def _export(args: argparse.Namespace, tell: Callable[[str], None]) -> str:
    """Export, and return what was done, for people."""
    from ctseg.deploy.deployment import export_trained, require_there
    from ctseg.deploy.export import ExportOptions
    from ctseg.deploy.recipe_bundle import RECIPE_PARITY_NAME, RecipeBundle
    from ctseg.deploy.trained_recipe import load_trained_recipe
    from ctseg.files.codes import read_codes
    from ctseg.nnunet.folds import parse_folds

    chosen = _chosen(args)
    require_there(args.cases)
    codes = {} if args.codes is None else read_codes(args.codes)
    options = ExportOptions(
        name=args.name,
        mirroring=args.tta,
        precisions=tuple(args.precision),
        fp16_output=args.fp16_output,
        opset=args.opset,
        max_batch_size=args.max_batch_size,
        accept_unproven=args.accept_unproven,
        codes=codes,
        votes=args.votes,
    )
    trained = load_trained_recipe(
        chosen.members,
        folds=parse_folds(args.folds) if args.folds else chosen.folds,
        checkpoint=checkpoint_file(args.checkpoint),
        postprocessing=chosen.postprocessing,
        trust=args.trust_checkpoint,
    )
    bundle = export_trained(trained, args.output, options, args.cases, report=tell)
    if isinstance(bundle, RecipeBundle):
        return (
            f"{bundle.folder}: {bundle.recipe.step.kind} of {', '.join(bundle.members)}, each a bundle; details in "
            f"their parity.md, and in {RECIPE_PARITY_NAME} for the whole; parity/ holds patient data and stays here"
        )
    states = ", ".join(f"{item.precision} {'proven' if item.proven else 'UNPROVEN'}" for item in bundle.report.variants)
    return (
        f"{bundle.folder}: {states}; details in parity.md; parity/ holds patient data and stays here, parity_phantom/ "
        "holds none and goes into images"
    )


class _Chosen(NamedTuple):
    """Which trained models are exported.

    Attributes:
        members: Where each is, and which one there.
        postprocessing: Of the model, or of the ensemble.
        folds: Those that were compared; None: those that are there.
    """

    members: "tuple[tuple[Path, Choice], ...]"
    postprocessing: "tuple[KeepLargest, ...]" = ()
    folds: tuple[int, ...] | None = None


def _chosen(args: argparse.Namespace) -> _Chosen:
    """Return what the words name."""
    import os

    from ctseg.errors import SetupError
    from ctseg.nnunet.best_configuration import BestConfiguration
    from ctseg.nnunet.results_folder import Choice

    if sum(item is not None for item in (args.input, args.dataset, args.best)) != 1:
        raise SetupError("give the trained model by exactly one of -i FOLDER_OR_ZIP, -d DATASET, --from BEST_JSON")
    choices = [
        Choice(trainer=args.trainer, plans=args.plans, configuration=configuration)
        for configuration in args.configuration or [None]
    ]
    if args.input is not None:
        return _Chosen(tuple((args.input, choice) for choice in choices))
    results = os.environ.get("nnUNet_results")  # noqa: SIM112 (nnU-Net's name)
    if not results:
        raise SetupError("nnUNet_results is not set: `export nnUNet_results=/a/folder`, or give the folder by -i")
    if args.dataset is not None:
        pattern = f"Dataset{int(args.dataset):03d}_*" if args.dataset.isdecimal() else args.dataset
        found = sorted(path for path in Path(results).glob(pattern) if path.is_dir())
        if len(found) != 1:
            raise SetupError(f"data set {args.dataset}: {len(found)} folders fit {pattern} in {results}")
        return _Chosen(tuple((found[0], choice) for choice in choices))
    best = BestConfiguration.read(args.best)
    folder = Path(results) / best.dataset
    members = tuple((folder / member.folder_name, Choice()) for member in best.members)
    return _Chosen(members, best.postprocessing, best.folds)


def _add_build(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "build",
        help="bundle to an entry of a Triton model repository, proven on this machine",
        description="Build an entry of a Triton model repository from a bundle, on the machine that will serve it; "
        "or, bare, a TensorRT plan from an ONNX file: `ctseg build model.onnx -o model.plan`.",
    )
    parser.add_argument("bundle", type=Path, help="folder that `ctseg export` wrote; or an ONNX file (bare form)")
    parser.add_argument("--repository", type=Path, help="Triton's model repository")
    parser.add_argument("-o", "--output", type=Path, help="the plan (bare form)")
    parser.add_argument(
        "--backend", choices=["python", "onnxruntime", "tensorrt"], default="python", help="default: %(default)s"
    )
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32", help="default: %(default)s")
    parser.add_argument("--name", help="name of the model; default: the bundle's")
    parser.add_argument("--version", type=int, help="version number; default: the next free one")
    parser.add_argument("--max_batch_size", type=int, help="most patches in one request; default: the bundle's")
    parser.add_argument("--instances", type=int, default=1, help="instances of the model; default: %(default)s")
    parser.add_argument(
        "--max_queue_delay_us", type=int, default=2000, help="wait to join requests, in µs; default: %(default)s"
    )
    parser.add_argument("--warmup", action="store_true", help="let Triton run one batch before the model is ready")
    parser.add_argument("--if_needed", action="store_true", help="build only if input, tools or machine differ")
    parser.add_argument("--accept_unproven", action="store_true", help="write what failed the gate, marked as unproven")
    parser.add_argument(
        "--no_whole_scans", action="store_true",
        help="leave out the entry that takes whole scans, NAME_scan beside NAME",
    )  # fmt: skip
    parser.add_argument(
        "--prove_live", action="store_true", help="start a server on a copy of the entry and compare its answers too"
    )
    cpu = parser.add_argument_group("python backend (--runtime: onnxruntime backend, too)")
    cpu.add_argument(
        "--device", choices=["cpu", "gpu"], default="cpu", help="gpu: ONNX Runtime on CUDA; default: %(default)s"
    )
    cpu.add_argument(
        "--runtime",
        choices=["exact", "fast", "onnxruntime", "openvino"],
        default="exact",
        help="what runs it on a CPU. exact: float32 within 1e-5 of float64, by OpenVINO, else by ONNX Runtime; a name: "
        "the same by that one; fast: the fastest whose labels agree; default: %(default)s",
    )
    cpu.add_argument("--threads", type=int, default=0, help="CPU threads of an instance; default: all")
    gpu = parser.add_argument_group("tensorrt backend")
    gpu.add_argument("--workspace_mb", type=int, default=4096, help="scratch memory in MiB; default: %(default)s")
    gpu.add_argument("--builder_level", type=int, default=3, help="0 (quick build) to 5; default: %(default)s")
    gpu.add_argument("--tf32", action="store_true", help="let an FP32 plan round factors to TF32")
    gpu.add_argument("--timing_cache", type=Path, help="folder that keeps measurements for the next build")
    gpu.add_argument("--server_tensorrt", metavar="VERSION", help="what the server loads; default: its library here")
    parser.set_defaults(run=_run_build)


def _run_build(args: argparse.Namespace) -> int:
    with shown_stages() as tell:
        done = _build(args, tell)
    print(done)
    return 0


def _build(args: argparse.Namespace, tell: Callable[[str], None]) -> str:
    """Build, and return what was done, for people."""
    from ctseg.deploy.build import BuildOptions, build_entry
    from ctseg.deploy.plan_file import PlanFileOptions, build_plan_file
    from ctseg.deploy.recipe_build import build_recipe
    from ctseg.deploy.recipe_bundle import is_recipe_bundle
    from ctseg.deploy.tensorrt_plan import PlanOptions
    from ctseg.errors import SetupError

    batch = args.max_batch_size or 4
    try:
        plan = PlanOptions(
            opt_batch=batch,
            max_batch=batch,
            workspace_mb=args.workspace_mb,
            optimization_level=args.builder_level,
            tf32=args.tf32,
            timing_cache=args.timing_cache,
        )
    except ValueError as error:
        raise SetupError(str(error)) from error
    if args.output is not None and args.repository is None and args.bundle.suffix == ".onnx":
        written = build_plan_file(
            args.bundle,
            args.output,
            PlanFileOptions(args.precision, plan, args.accept_unproven, args.server_tensorrt),
            report=tell,
        )
        return f"{written}: {written.stat().st_size / 1e6:.1f} MB; what it was built with stands in {written}.json"
    if args.repository is None or args.output is not None:
        raise SetupError("give BUNDLE --repository DIR, or the bare form FILE.onnx -o FILE.plan")
    options = BuildOptions(
        backend=args.backend,
        precision=args.precision,
        name=args.name,
        version=args.version,
        device=args.device,
        runtime=args.runtime,
        max_batch_size=args.max_batch_size,
        instance_count=args.instances,
        max_queue_delay_us=args.max_queue_delay_us,
        threads=args.threads,
        warmup=args.warmup,
        if_needed=args.if_needed,
        accept_unproven=args.accept_unproven,
        whole_scans=not args.no_whole_scans,
        prove_live=args.prove_live,
        plan=plan,
        server_tensorrt=args.server_tensorrt,
    )
    if is_recipe_bundle(args.bundle):
        recipe, version = build_recipe(args.bundle, args.repository, options, report=tell)
        members = ", ".join(member.model for member in recipe.members)
        return f"{args.repository / recipe.name}: version {version}, {recipe.step.kind} of {members}"
    entry = build_entry(args.bundle, args.repository, options, report=tell)
    newest = entry.newest
    return f"{newest.folder}: {entry.backend}, {newest.spec.precision}, parity {newest.spec.parity.summary}"


def _add_serve(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="run Triton on a model repository, on this machine only",
        description="Run a tritonserver on a model repository, on loopback; for production use Dockerfile.serve.",
    )
    parser.add_argument("--repository", type=Path, required=True, help="Triton's model repository")
    parser.add_argument("--watch", action="store_true", help="serve new versions while running")
    parser.add_argument("--grpc_port", type=int, default=8001, help="0 takes a free one; default: %(default)s")
    parser.add_argument(
        "--http_port", type=int, help="speak HTTP too, on this port; 0 takes a free one; default: no HTTP"
    )
    parser.add_argument("--metrics_port", type=int, help="serve metrics on this port; default: no metrics")
    parser.add_argument(
        "--start_timeout_s", type=float, default=300.0, help="longest time until it is ready; default: %(default)s"
    )
    parser.set_defaults(run=_run_serve)


def _run_serve(args: argparse.Namespace) -> int:
    from ctseg.serving.process import RunningServer, ServerOptions
    from ctseg.serving.server import run_server

    def tell(server: RunningServer) -> None:
        where = server.url if server.http_url is None else f"{server.url} and {server.http_url}"
        print(f"serving {', '.join(server.models)} on {where} (loopback only; Ctrl-C stops)", flush=True)

    options = ServerOptions(
        is_private=False,
        watch=args.watch,
        grpc_port=args.grpc_port,
        http_port=args.http_port,
        metrics_port=args.metrics_port,
        start_timeout_s=args.start_timeout_s,
        restarts=12,
    )
    run_server(args.repository, options, tell)
    print("stopped", flush=True)
    return 0


def _add_doctor(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is wrong with this setup, and what to do",
        description="Look at what is installed, the GPU, TensorRT, the server and the model repository.",
    )
    parser.add_argument("--repository", type=Path, help="Triton's model repository")
    parser.add_argument("--url", dest="urls", nargs="+", default=[], metavar="HOST:PORT", help="running Triton servers")
    parser.add_argument(
        "--bundle",
        type=Path,
        help="compare PyTorch's logits in this bundle with what the servers answer; without --url, one started on "
        "--repository",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_doctor)


def _run_doctor(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from ctseg.deploy.doctor import examine

    findings = examine(repository=args.repository, urls=args.urls, bundle=args.bundle)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.level:7}  {finding.subject}: {finding.found}")
            if finding.advice:
                flags = flags_worded(finding.settings, args.parser)
                print(f"         -> {finding.advice}{f' ({flags})' if flags else ''}")
    return 1 if any(finding.level == "problem" for finding in findings) else 0
