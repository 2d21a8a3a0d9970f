"""Trained networks to bundles: a plain U-Net, a ResEnc and a Swin UNETR with random weights, and the demo's network."""

import dataclasses
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.scans import scan_file, write_tiny_scan
from ctseg.deploy.bundle import read_bundle
from scripts.gpu_proof.bench import DEMO, DEMO_SCANS, ROOT, Bench, ProofNetwork
from scripts.gpu_proof.rows import Teller

_CPUS_OF_AN_EXPORT = 8


def run(bench: Bench, tell: Teller) -> None:
    """Export side by side, each on CPUs of its own, as far as there are enough; the longest begin first."""
    _write_demo(bench, tell)
    jobs: dict[str, Callable[[], None]] = {DEMO: partial(_demo, bench, tell, DEMO, "client")}
    for network in reversed(bench.networks):
        jobs[network.name] = partial(_network, bench, tell, network)
    jobs[f"{DEMO}_graph"] = partial(_demo, bench, tell, f"{DEMO}_graph", "graph")

    def attempt(name: str) -> None:
        with tell.attempt(f"export of {name}"):
            jobs[name]()

    shares = queue.SimpleQueue[list[int]]()
    cpus = sorted(os.sched_getaffinity(0))
    workers = max(1, len(cpus) // _CPUS_OF_AN_EXPORT)
    for worker in range(workers):
        shares.put(cpus[worker::workers])
    # the commands of a thread run on its CPUs: they inherit them
    with ThreadPoolExecutor(workers, initializer=lambda: os.sched_setaffinity(0, shares.get())) as pool:
        list(pool.map(attempt, jobs))


def _write_demo(bench: Bench, tell: Teller) -> None:
    """Put nnU-Net's folder of the demo's network together again, in a process that may import torch."""
    with tell.attempt(f"{DEMO}: nnU-Net's folder from the served graph"):
        bench.python(
            "from pathlib import Path; from scripts.gpu_proof.demo_weights import write_demo_folder; "
            f"write_demo_folder(Path({str(ROOT / 'model_repository' / DEMO)!r}), Path({str(bench.scratch)!r}))"
        )
        tell.ok(f"{DEMO}: nnU-Net's folder from the served graph", str(bench.demo_folder.relative_to(bench.scratch)))


def _demo(bench: Bench, tell: Teller, name: str, mirroring: str) -> None:
    scan = sorted(DEMO_SCANS.glob("*.nii.gz"))[0]
    if mirroring == "graph":  # each window runs eight times, in FP32 on the CPU: one window has to do
        scan = scan_file(write_tiny_scan(scan, bench.scratch / "tiny"), bench.scratch / "tiny")
    _export(bench, tell, name, bench.demo_folder, "--cases", scan, "--tta", mirroring, proven=True)


def _network(bench: Bench, tell: Teller, network: ProofNetwork) -> None:
    given = ", ".join(f"{field.name}={getattr(network, field.name)!r}" for field in dataclasses.fields(network))
    bench.python(
        "from pathlib import Path; from benchmarks.models import write_trained_folder; "
        "from scripts.gpu_proof.bench import ProofNetwork; "
        f"write_trained_folder(Path({str(bench.scratch)!r}), ProofNetwork({given}))"
    )
    # random weights leave many near ties, and there is no scan that they know: nothing to prove
    _export(bench, tell, network.name, bench.trained(network), "--accept_unproven", proven=False)


def _export(bench: Bench, tell: Teller, name: str, source: Path, *more: str | Path, proven: bool) -> None:
    began = time.perf_counter()
    words = ("export", "-i", source, "-o", bench.bundles / name, "--name", name)
    bench.ctseg(*words, "--precision", "fp32", "fp16", "--fp16_output", *more)
    seconds = time.perf_counter() - began
    bundle = read_bundle(bench.bundles / name)
    parts, figures = [], {"seconds": seconds}
    for variant in bundle.report.variants:
        size = (bundle.folder / variant.file).stat().st_size / 1e6
        worst = max(item.relative_l2 for check in variant.checks for item in check.comparisons)
        figures |= {f"{variant.precision}_mb": size, f"{variant.precision}_relative_l2": worst}
        state = "proven" if variant.proven else "unproven"
        parts.append(f"{variant.precision} {size:.1f} MB, relative L2 {worst:.1e}, {state}")
    passed = all(check.passed for variant in bundle.report.variants for check in variant.checks)
    holds = passed and (not proven or all(variant.proven for variant in bundle.report.variants))
    patch = " x ".join(str(side) for side in bundle.spec.patch_size)
    found = f"{seconds:.0f} s; patch {patch}, {bundle.spec.num_heads} classes; {'; '.join(parts)}"
    tell.judge(f"export of {name}", holds, found, "proven" if proven else "its gate passes", **figures)
