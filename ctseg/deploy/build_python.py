"""Entries for Triton's python backend: ONNX Runtime or OpenVINO on the CPU, ONNX Runtime on a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.deploy.build_job import Built, Job, finish, up_to_date
from ctseg.deploy.cuda_driver import CudaDriver
from ctseg.deploy.parity import EXACT_SUMS, check_network, require
from ctseg.deploy.parity_report import Check, summary
from ctseg.deploy.runtimes import (
    Network,
    available_runtimes,
    describe_runtime,
    machine,
    onnxruntime_network,
    openvino_network,
    require_cuda_build,
)
from ctseg.deploy.without_votes import gives_same_logits, write_without_votes
from ctseg.errors import ParityError, SetupError, SpecError, missing_package
from ctseg.files.folders import require_writable
from ctseg.files.owned_folder import owned_folder
from ctseg.serving.entries import Entry
from ctseg.serving.publish import Runtime
from ctseg.stages import stage


@dataclass(frozen=True)
class Candidate:
    """A way to run the network on this machine, and how it did.

    Attributes:
        runtime: What runs it.
        precision_hint: OpenVINO's inference precision.
        check: The comparison with PyTorch.
        seconds: For one patch.
    """

    runtime: Runtime
    precision_hint: str
    check: Check
    seconds: float


def build_python(job: Job) -> Entry:
    """Build an entry for the python backend, with the runtime that was asked for, see :data:`RuntimeChoice`.

    Raises:
        SetupError: No runtime is installed that has the precision, or a GPU was asked for that cannot be used.
        ParityError: None gives PyTorch's labels.
        SpecError: The repository has another model of that name.
        OutputError: The repository cannot be written.
    """
    options = job.options
    runtimes = _runtimes_for(job)
    tools: dict[str, Any] = {
        **({"votes": "when asked"} if job.spec.votes else {}),
        "runtimes": sorted(describe_runtime(name) for name in runtimes),
        "machine": machine(),
        "gpu": CudaDriver().gpu().name if options.device == "gpu" else None,
    }
    if same := up_to_date(job, tools):
        return same
    require_writable(job.repository, name=job.spec.name)
    with owned_folder("ctseg-graph-") as temporary:
        job = job.as_served(temporary)
        candidates = _tried(job, runtimes)
        best = _chosen(candidates)
        _require(job, best)
        without = _without_votes(job, temporary) if best.runtime == "onnxruntime" else ()
        info = {
            **tools,
            "network": best.check.network,
            "runtime": describe_runtime(best.runtime),
            "seconds_per_patch": {item.check.network: round(item.seconds, 4) for item in candidates},
        }
        return finish(
            job,
            Built(
                model_file=job.model_file,
                check=best.check,
                info=info,
                runtime=best.runtime,
                precision_hint=best.precision_hint,
                threads=options.threads,
                data_files=(*job.data_files, *without),
            ),
        )


def _without_votes(job: Job, folder: Path) -> tuple[Path, ...]:
    """Write the network without votes, if it has any and ONNX Runtime gives the same logits without them."""
    if job.spec.votes is None:
        return ()
    threads, device = job.options.threads, job.options.device
    with stage("the network without votes is compared"):
        file = write_without_votes(job.model_file, folder, job.data_files)
        networks = [
            onnxruntime_network(path, threads=threads, device=device, voting=spec)
            for path, spec in ((job.model_file, job.spec), (file, None))
        ]
        if gives_same_logits(networks[0], networks[1], job.spec, job.parity_data[0]):
            return (file,)
    job.report("  without votes ONNX Runtime rounds otherwise: votes are counted whether they are asked for or not")
    return ()


def _tried(job: Job, runtimes: Sequence[str]) -> list[Candidate]:
    """Try runtimes in their order, up to the first that passes where exact sums are asked for.

    Raises:
        SpecError: None can load the network; or ParityError: none can run it.
    """
    candidates: list[Candidate] = []
    for runtime in runtimes:
        try:
            candidate = try_runtime(job, runtime)
        except (SpecError, ParityError) as error:
            if runtime == runtimes[-1] and not candidates:
                raise
            job.report(f"  {describe_runtime(runtime)}: {error}")
            continue
        job.report(f"  {candidate.check.network}: {candidate.seconds:.3f} s a patch")
        job.report(summary([candidate.check]))
        candidates.append(candidate)
        if candidate.check.passed and job.options.runtime != "fast":
            break
    return candidates


def _chosen(candidates: Sequence[Candidate]) -> Candidate:
    """Return what passed, the fastest where several did; the first where none did."""
    passing = [candidate for candidate in candidates if candidate.check.passed] or candidates[:1]
    return min(passing, key=lambda candidate: candidate.seconds)


def _require(job: Job, best: Candidate) -> None:
    try:
        require(best.check, model=job.spec.name, accept_unproven=job.options.accept_unproven)
    except ParityError as error:
        if not job.exact_sums or job.options.precision != "fp32" or best.check.passed:
            raise
        raise ParityError(
            f"{error}; or a network that is less exact can be asked for", settings=(*error.settings, "runtime")
        ) from error


def _runtimes_for(job: Job) -> tuple[str, ...]:
    """Return the runtimes to try.

    Raises:
        SetupError: None is installed that has the precision, or none that has the device.
    """
    options = job.options
    runtimes = available_runtimes() if options.runtime in ("exact", "fast") else (options.runtime,)
    if options.device == "gpu":
        if options.runtime == "openvino" or options.precision == "bf16":
            raise SetupError(
                f"{job.spec.name}: on a GPU the python backend runs ONNX Runtime, in fp32 or fp16: leave the runtime "
                "to it, or build for the CPU",
                settings=("device", "runtime", "precision"),
            )
        runtimes = tuple(name for name in runtimes if name == "onnxruntime")
        require_cuda_build()
    if options.precision == "bf16":
        runtimes = tuple(name for name in runtimes if name == "openvino")
        if not runtimes:
            raise SetupError(f"{job.spec.name}: only OpenVINO has bf16, and it is not installed: see docs/install.md")
    if not runtimes:
        raise missing_package("ONNX Runtime", needed_for=f"{job.spec.name}: the python backend", extra="serve")
    return runtimes


def try_runtime(job: Job, runtime: str) -> Candidate:
    """Run the network on this machine, compare it with PyTorch, and time it.

    Args:
        job: The build.
        runtime: ``onnxruntime`` or ``openvino``.
    """
    precision, device = job.options.precision, job.options.device
    hint = ""
    network: Network
    with stage(f"{describe_runtime(runtime)} loads the network"):
        if runtime == "openvino":
            hint = "bf16" if precision == "bf16" else "f32"
            network = openvino_network(
                job.model_file, precision_hint=hint, threads=job.options.threads, voting=job.spec
            )
        else:
            network = onnxruntime_network(job.model_file, threads=job.options.threads, device=device, voting=job.spec)
    where = f"on the {device.upper()}"
    sums = EXACT_SUMS if job.exact_sums else ""
    what = " ".join(part for part in (job.source.file, "in", describe_runtime(runtime), hint, where, sums) if part)
    check = check_network(
        network,
        job.parity_data,
        job.spec,
        what=what,
        precision=precision,
        sha256=job.source.sha256,
        limits=job.limits,
    )
    with stage("timing a patch"):
        seconds = job.measure(network, job.spec)
    return Candidate("openvino" if runtime == "openvino" else "onnxruntime", hint, check, seconds)
