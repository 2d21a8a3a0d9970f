"""Bundles to entries, with every runtime that was found, in FP32 and FP16; the gate compares each with PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.deploy.parity_report import ParityReport
from ctseg.serving.entries import read_entry
from scripts.gpu_proof.bench import DEMO, Bench
from scripts.gpu_proof.rows import Teller


@dataclass(frozen=True)
class Runtime:
    """A way to run networks.

    Attributes:
        name: For the table, and the end of its entries' names.
        words: What ``ctseg build`` is told.
    """

    name: str
    words: tuple[str, ...]


ONNXRUNTIME = {
    "gpu": Runtime("gpu", ("--backend", "python", "--runtime", "onnxruntime", "--device", "gpu")),
    "cpu": Runtime("cpu", ("--backend", "python", "--runtime", "onnxruntime", "--device", "cpu")),
}
TENSORRT = Runtime("trt", ("--backend", "tensorrt"))


def entry_name(bundle: str, runtime: str, precision: str) -> str:
    """Return the name under which a bundle is built."""
    return f"{bundle}_{runtime}_{precision}"


def run(bench: Bench, tell: Teller) -> None:
    """Build what can be built, as long as there is time: first what most depends on."""
    runtimes = _runtimes(bench, tell)
    for name, precision in in_order([network.name for network in bench.networks]):
        if not (bench.bundles / name).is_dir():
            tell.not_run(f"build of {name}, {precision}", "there is no bundle of it")
            continue
        for runtime in runtimes:
            # the control on the CPU is the demo's; at full size it would take what is left of the time
            if runtime.name == "cpu" and name != DEMO and bench.device == "gpu":
                continue
            what = f"build of {name}, {runtime.name}, {precision}"
            with tell.attempt(what):
                _build(bench, tell, what, name, runtime, precision)


def in_order(networks: Sequence[str]) -> list[tuple[str, str]]:
    """Return bundles and precisions: the demo's, then FP16 of the large networks, their FP32 last."""
    demos = [(name, precision) for name in (DEMO, f"{DEMO}_graph") for precision in ("fp32", "fp16")]
    return demos + [(name, precision) for precision in ("fp16", "fp32") for name in networks]


def _runtimes(bench: Bench, tell: Teller) -> list[Runtime]:
    """Return what can be built with; tell what cannot."""
    found = bench.found
    runtimes = []
    if bench.device == "gpu":
        if found.onnxruntime_cuda:
            runtimes.append(ONNXRUNTIME["gpu"])
        else:
            tell.not_found("ONNX Runtime on CUDA", "see the part runtimes: no entry is built with it")
    if found.tensorrt and found.gpus and "tensorrt" in found.triton_backends:
        runtimes.append(TENSORRT)
    else:
        lacks = "no GPU" if not found.gpus else found.tensorrt or "no TensorRT that compiles"
        served = "" if "tensorrt" in found.triton_backends else ", no Triton that loads its plans"
        tell.not_found("TensorRT plans", f"{lacks}{served}")
    runtimes.append(ONNXRUNTIME["cpu"])
    return runtimes


def _build(bench: Bench, tell: Teller, what: str, bundle: str, runtime: Runtime, precision: str) -> None:
    name = entry_name(bundle, runtime.name, precision)
    words: list[str | Path] = [
        "build",
        bench.bundles / bundle,
        "--repository",
        bench.repository,
        "--name",
        name,
        *runtime.words,
    ]
    words += ["--precision", precision]
    if not bundle.startswith(DEMO):
        words.append("--accept_unproven")
    measured = bench.ctseg(*words)
    newest = read_entry(bench.repository / name).newest
    checks = [check for variant in _report(newest.folder).variants for check in variant.checks]
    worst = max(item.relative_l2 for check in checks for item in check.comparisons)
    differing = max(item.label_difference_share for check in checks for item in check.comparisons)
    figures = {"seconds": measured.wall_s, "relative_l2": worst, "labels_differ_share": differing}
    patch = newest.build.get("seconds_per_patch", {})
    speed = f", {min(patch.values()) * 1000:.0f} ms a patch" if patch else ""
    problems = "; ".join(problem for check in checks for problem in check.problems)
    agreement = f"relative L2 {worst:.1e}, labels differ {differing:.4%}"
    tell.judge(
        what,
        not problems,
        problems or f"{checks[0].network}: {agreement}{speed}; {measured.wall_s:.0f} s",
        "the gate passes",
        **figures,
        **({"seconds_a_patch": min(patch.values())} if patch else {}),
    )


def _report(folder: Path) -> ParityReport:
    return ParityReport.read(folder / "parity.json")
