"""Entries for Triton's python backend: ONNX Runtime or OpenVINO on the CPU."""

from dataclasses import dataclass

from ctseg.deploy.build_job import Built, Job, finish, up_to_date
from ctseg.deploy.parity import check_network, require
from ctseg.deploy.parity_report import Check, summary
from ctseg.deploy.runtimes import (
    Network,
    available_runtimes,
    describe_runtime,
    machine,
    onnxruntime_network,
    openvino_network,
)
from ctseg.errors import SetupError, missing_package
from ctseg.files.folders import require_writable
from ctseg.serving.entries import Entry
from ctseg.serving.publish import Runtime


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
    """Build an entry for the python backend, with the fastest runtime that passes the gate.

    Raises:
        SetupError: No runtime is installed, or none that has the precision.
        ParityError: None gives PyTorch's labels.
        SpecError: The repository has another model of that name.
        OutputError: The repository cannot be written.
    """
    options = job.options
    runtimes = (options.runtime,) if options.runtime else available_runtimes()
    if options.precision == "bf16":
        runtimes = tuple(name for name in runtimes if name == "openvino")
        if not runtimes:
            raise SetupError(f"{job.spec.name}: only OpenVINO has bf16, and it is not installed: see docs/install.md")
    if not runtimes:
        raise missing_package("ONNX Runtime", needed_for=f"{job.spec.name}: the python backend", extra="serve")
    tools = {"runtimes": sorted(describe_runtime(name) for name in runtimes), "machine": machine()}
    if same := up_to_date(job, tools):
        return same
    require_writable(job.repository, name=job.spec.name)
    candidates = []
    for runtime in runtimes:
        candidate = try_on_cpu(job, runtime)
        job.report(f"  {candidate.check.network}: {candidate.seconds:.3f} s a patch")
        job.report(summary([candidate.check]))
        candidates.append(candidate)
    passing = [candidate for candidate in candidates if candidate.check.passed] or candidates[:1]
    best = min(passing, key=lambda candidate: candidate.seconds)
    require(best.check, model=job.spec.name, accept_unproven=options.accept_unproven, data=job.data)
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
            data_files=job.data_files,
        ),
    )


def try_on_cpu(job: Job, runtime: str) -> Candidate:
    """Run the network on this machine's CPU, compare it with PyTorch, and time it.

    Args:
        job: The build.
        runtime: ``onnxruntime`` or ``openvino``.
    """
    precision = job.options.precision
    hint = ""
    network: Network
    if runtime == "openvino":
        hint = "bf16" if precision == "bf16" else "f32"
        network = openvino_network(job.model_file, precision_hint=hint, threads=job.options.threads)
    else:
        network = onnxruntime_network(job.model_file, threads=job.options.threads)
    what = " ".join(part for part in (job.source.file, "in", describe_runtime(runtime), hint, "on the CPU") if part)
    check = check_network(network, job.data, job.spec, what=what, precision=precision, sha256=job.source.sha256)
    seconds = job.measure(network, job.spec)
    return Candidate("openvino" if runtime == "openvino" else "onnxruntime", hint, check, seconds)
