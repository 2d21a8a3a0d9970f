"""A real Triton serves what was built: its answers, its speed beside the network alone, shared memory, mirroring."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.arrays import Patches
from ctseg.deploy.bundle import read_bundle
from ctseg.deploy.live_proof import check_live
from ctseg.errors import CtsegError
from ctseg.predict.predictor import MirroringPredictor, PatchPredictor
from ctseg.serving.entries import CONFIG_NAME, list_models
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from scripts.gpu_proof.bench import DEMO, Bench
from scripts.gpu_proof.rows import Teller
from scripts.gpu_proof.sections.build import entry_name

START_S = 90.0
_LARGEST_MIRRORING_ERROR = {"fp32": 1e-4, "fp16": 5e-3}


def run(bench: Bench, tell: Teller) -> None:
    """Serve each network in FP32 and FP16, and time the same in torch alone."""
    models = list_models(bench.repository) if bench.repository.is_dir() else []
    if not models or not bench.found.triton:
        lacks = "no Triton was found" if models else "there is no entry to serve"
        tell.not_run("serving", lacks)
        return
    best: dict[str, float] = {}
    for bundle in (DEMO, *(network.name for network in bench.networks)):
        for runtime in ("trt", bench.device):
            names = [entry_name(bundle, runtime, precision) for precision in ("fp32", "fp16")]
            names += [entry_name(f"{bundle}_graph", runtime, precision) for precision in ("fp32", "fp16")]
            served = [name for name in names if name in models]
            if not served:
                continue
            with tell.attempt(f"serving {bundle}, {runtime}"), _server(bench, tell, served) as server:
                for name in (name for name in served if "_graph_" not in name):
                    best[name] = _speed_of(bench, tell, server, bundle, name)
                _mirroring(bench, tell, server, bundle, runtime, served)
    for bundle in (DEMO, *(network.name for network in bench.networks)):
        with tell.attempt(f"{bundle}, torch alone"):
            _beside_torch(bench, tell, bundle, best)


@contextmanager
def _server(bench: Bench, tell: Teller, names: list[str]) -> Iterator[RunningServer]:
    """Start a server; where Triton refuses instances on a GPU, let the backend take the GPU by itself."""
    options = ServerOptions(start_timeout_s=START_S)
    began = time.perf_counter()
    repository = bench.repository
    entered = embedded_server(repository, names, options)
    try:
        server = entered.__enter__()
    except CtsegError as error:
        if bench.device == "cpu" or names[0].endswith("trt"):
            raise
        tell.row("failed", f"Triton starts with {', '.join(names)}", str(error)[-1500:], "KIND_GPU")
        entered = embedded_server(_without_kind_gpu(bench, names), names, options)
        server = entered.__enter__()
    try:
        tell.ok(f"Triton serves {', '.join(names)}", f"ready and proven after {time.perf_counter() - began:.1f} s")
        yield server
    finally:
        entered.__exit__(None, None, None)


def _without_kind_gpu(bench: Bench, names: list[str]) -> Path:
    target = bench.scratch / "repository_kind_cpu"
    for name in names:
        shutil.copytree(bench.repository / name, target / name, dirs_exist_ok=True)
        config = target / name / CONFIG_NAME
        config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    return target


def _speed_of(bench: Bench, tell: Teller, server: RunningServer, bundle: str, name: str) -> float:
    """Prove an entry through the server, then time it; return the most windows in a second."""
    best = 0.0
    for sharing in ("auto", "off"):
        options = ClientOptions(headers=server.headers, shared_memory=sharing)
        with connect([server.url], name, options=options) as predictor:
            if sharing == "auto":
                check = check_live(predictor, read_bundle(bench.bundles / bundle), predictor.spec.precision)
                worst = max(item.relative_l2 for item in check.comparisons)
                found = (
                    "; ".join(check.problems) or f"relative L2 {worst:.1e}, answers in {predictor.spec.output.dtype}"
                )
                tell.judge(f"{name}: the server's answers", check.passed, found, "PyTorch's", relative_l2=worst)
            for batch in sorted({1, predictor.max_batch_size}):
                rate = windows_per_second(predictor, batch, predictor.max_in_flight, least_s=bench.timing_s)
                best = max(best, rate)
                what = f"{name}: batches of {batch}, by {predictor.identity.transport}"
                tell.ok(what, f"{rate:.2f} windows/s, {1000 / rate:.0f} ms a window", windows_per_second=rate)
    return best


def windows_per_second(predictor: PatchPredictor, batch: int, in_flight: int, *, least_s: float) -> float:
    """Send batches of noise from several threads for a while; return how many patches came back in a second.

    Args:
        predictor: Runs the network.
        batch: Patches in a request.
        in_flight: Requests at once.
        least_s: Seconds to go on for; at least one request of each thread is waited for.
    """
    patches = patches_for(predictor.spec, batch)
    predictor.predict(patches)  # a batch of this size for the first time: plans, memory

    def send(until: float) -> int:
        count = 0
        while not count or time.perf_counter() < until:
            predictor.predict(patches)
            count += 1
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        count = sum(pool.map(send, [began + least_s] * in_flight))
    return count * batch / (time.perf_counter() - began)


def patches_for(spec: Any, batch: int) -> Patches:
    """Return noise of the shape that a network takes."""
    shape = (batch, len(spec.channels), *spec.patch_size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _mirroring(bench: Bench, tell: Teller, server: RunningServer, bundle: str, runtime: str, served: list[str]) -> None:
    """Compare mirroring in the graph with mirroring in the client, in answers and time."""
    for precision in ("fp32", "fp16"):
        plain, in_graph = (entry_name(name, runtime, precision) for name in (bundle, f"{bundle}_graph"))
        if in_graph not in served or plain not in served:
            continue
        options = ClientOptions(headers=server.headers)
        with (
            connect([server.url], plain, options=options) as one,
            connect([server.url], in_graph, options=options) as other,
        ):
            client = MirroringPredictor(one)
            patches = patches_for(one.spec, 1)
            expected, answer = client.predict(patches), other.predict(patches)
            error = float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))
            rates = [windows_per_second(p, 1, one.max_in_flight, least_s=bench.timing_s) for p in (client, other)]
        tell.judge(
            f"{bundle}, {runtime}, {precision}: mirroring in the graph beside the client",
            error < _LARGEST_MIRRORING_ERROR[precision],
            f"relative L2 {error:.1e}; {rates[1]:.2f} windows/s in the graph, {rates[0]:.2f} in the client",
            f"under {_LARGEST_MIRRORING_ERROR[precision]:g}",
            relative_l2=error,
            graph_windows_per_second=rates[1],
            client_windows_per_second=rates[0],
        )


def _beside_torch(bench: Bench, tell: Teller, bundle: str, best: dict[str, float]) -> None:
    """Time the network alone in torch, as nnU-Net runs it, and say what serving makes of it."""
    import torch

    from ctseg.deploy.trained_model import load_trained_model

    if not (bench.bundles / bundle).is_dir():
        tell.not_run(f"{bundle}, torch alone", "there is no bundle of it")
        return
    folder = bench.demo_folder if bundle == DEMO else bench.trained(next(n for n in bench.networks if n.name == bundle))
    spec = read_bundle(bench.bundles / bundle).spec
    device = torch.device(bench.torch_device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # FP32 would not be FP32
    network = load_trained_model(folder).networks[0].to(device).eval()
    patch = torch.from_numpy(patches_for(spec, 1)).to(device)
    alone = {"fp32": _torch_rate(bench, network, patch, autocast=False)}
    if device.type == "cuda":
        alone["fp16"] = _torch_rate(bench, network, patch, autocast=True)
    for precision, rate in alone.items():
        how = "eager, FP32 without TF32" if precision == "fp32" else "autocast to FP16, as nnU-Net runs it"
        for runtime in ("trt", bench.device):
            name = entry_name(bundle, runtime, precision)
            if name in best:
                share = best[name] / rate
                found = f"{rate:.2f} windows/s alone, {best[name]:.2f} served: {share:.2f} x"
                figures = {"torch_windows_per_second": rate, "served_windows_per_second": best[name], "ratio": share}
                tell.ok(f"{bundle}: torch alone ({how}) beside {name}", found, "", **figures)
        if not any(entry_name(bundle, runtime, precision) in best for runtime in ("trt", bench.device)):
            tell.ok(f"{bundle}: torch alone ({how})", f"{rate:.2f} windows/s", torch_windows_per_second=rate)


def _torch_rate(bench: Bench, network: Any, patch: Any, *, autocast: bool) -> float:
    import torch

    def wait() -> None:
        if patch.device.type == "cuda":
            torch.cuda.synchronize()

    def once() -> None:
        network(patch)

    with torch.inference_mode(), torch.autocast(patch.device.type, dtype=torch.float16, enabled=autocast):
        return _rate_of(once, wait, bench.timing_s)


def _rate_of(once: Callable[[], None], wait: Callable[[], None], least_s: float) -> float:
    once()
    wait()
    count, began = 0, time.perf_counter()
    while not count or time.perf_counter() - began < least_s:
        once()
        count += 1
        wait()
    return count / (time.perf_counter() - began)
