"""Entries for Triton's TensorRT backend: a plan, compiled on the GPU that serves it."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ctseg.deploy.build_job import Built, Job, add_to_newest, finish, is_same, plan_builds, up_to_date
from ctseg.deploy.engine_types import require_precision
from ctseg.deploy.parity import check_network
from ctseg.deploy.tensorrt_plan import PlanOptions, Signature, TensorRt, built_with
from ctseg.files.folders import require_writable
from ctseg.files.owned_folder import owned_folder
from ctseg.serving.entries import Entry


def build_tensorrt(job: Job) -> Entry:
    """Build an entry with a TensorRT plan for this machine's GPU, or add the plan to a version that lacks only that.

    Raises:
        SetupError: There is no GPU, no TensorRT, or not the server's; or TensorRT lacks the precision.
        ParityError: The plan does not give PyTorch's labels.
        SpecError: TensorRT does not support the network, or the repository has another model of that name.
        OutputError: The repository cannot be written.
    """
    name, precision = job.spec.name, job.options.precision
    compiler = job.compiler or TensorRt(job.options.server_tensorrt)
    gpu = compiler.gpu
    plan_options = replace(
        job.options.plan or PlanOptions(), max_batch=job.spec.max_batch_size, opt_batch=job.spec.max_batch_size
    )
    tools = built_with(compiler, plan_options)
    entry = job.entry_on_disk()
    builds = {} if entry is None else plan_builds(entry)
    if same := up_to_date(job, tools):
        return same
    require_writable(job.repository, name=name)
    job.report(f"{name}: TensorRT {compiler.version} builds for {gpu.name} ({gpu.compute_capability})")
    plan = compiler.build(job.model_file, plan_options)
    network, types = compiler.load(plan.data, Signature.of_spec(job.spec))
    proofs = require_precision(
        types, precision, network_types=plan.network_types, source=f"{name}: the plan built from {job.model_file}"
    )
    what = f"plan of {job.source.file} in TensorRT {compiler.version} on {gpu.name}"
    check = check_network(
        network,
        job.parity_data,
        job.spec,
        what=what,
        precision=precision,
        sha256=hashlib.sha256(plan.data).hexdigest(),
        limits=job.limits,
    )
    job.require(check)
    info = {
        **tools,
        "network": what,
        "driver": gpu.driver,
        "network_layers": dict(plan.network_types),
        "engine_layers": dict(types),
        "precision_proven_by": proofs,
        "seconds": round(plan.seconds, 1),
        "seconds_per_patch": round(job.measure(network, job.spec), 5),
        "plan_bytes": len(plan.data),
    }
    with owned_folder("ctseg-plan-") as temporary:
        file = temporary / "model.plan"
        file.write_bytes(plan.data)
        built = Built(file, check, info, compute_capability=gpu.compute_capability)
        if entry is not None and job.options.version is None and _lacks_only_this_gpu(job, builds, tools):
            return add_to_newest(job, entry, built)
        return finish(job, built)


def _lacks_only_this_gpu(job: Job, builds: Mapping[str, Mapping[str, Any]], tools: Mapping[str, Any]) -> bool:
    if tools["compute_capability"] in builds:
        return False
    expected = {**job.identity, "tensorrt": tools["tensorrt"], "profile": tools["profile"]}
    return all(is_same(item, expected) for item in builds.values())
