"""Entries for Triton's own onnxruntime backend."""

from ctseg.deploy.build_job import Built, Job, finish, up_to_date
from ctseg.deploy.build_python import try_runtime
from ctseg.deploy.runtimes import describe_runtime
from ctseg.errors import SetupError
from ctseg.files.folders import require_writable
from ctseg.files.owned_folder import owned_folder
from ctseg.serving.entries import Entry


def build_onnxruntime(job: Job) -> Entry:
    """Build an entry for Triton's onnxruntime backend.

    Raises:
        SetupError: ONNX Runtime lacks the precision, or another runtime was asked for.
        ParityError: It does not give PyTorch's labels.
        SpecError: The repository has another model of that name.
        OutputError: The repository cannot be written.
    """
    if job.options.precision == "bf16":
        raise SetupError(f"{job.spec.name}: ONNX Runtime has no bf16 for this network: take fp32 or fp16")
    if job.options.runtime == "openvino":
        raise SetupError(
            f"{job.spec.name}: Triton's onnxruntime backend runs ONNX Runtime: take the python backend for OpenVINO",
            settings=("backend", "runtime"),
        )
    tools = {"runtimes": [describe_runtime("onnxruntime")]}
    if same := up_to_date(job, tools):
        return same
    require_writable(job.repository, name=job.spec.name)
    with owned_folder("ctseg-graph-") as temporary:
        job = job.as_served(temporary)
        check = try_runtime(job, "onnxruntime").check
        job.require(check)
        # Triton's backend brings its own ONNX Runtime: the live check is what proves that one
        return finish(job, Built(job.model_file, check, {**tools, "network": check.network}, data_files=job.data_files))
