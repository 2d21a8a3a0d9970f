"""From a bundle to an entry of a Triton model repository, proven on the machine that will serve it."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from ctseg.deploy.bundle import Bundle, read_bundle
from ctseg.deploy.parity import (
    Check,
    Network,
    ParityData,
    ParityReport,
    Variant,
    check_network,
    compare,
    require,
    summary,
)
from ctseg.deploy.runtimes import (
    available_runtimes,
    describe_runtime,
    machine,
    onnxruntime_network,
    openvino_network,
    seconds_per_patch,
    sha256_of,
)
from ctseg.errors import OutputError, ParityError, SetupError, SpecError
from ctseg.files.folders import require_writable
from ctseg.model_spec import ModelSpec, Precision
from ctseg.predict.predictor import PatchPredictor
from ctseg.serving.entries import Backend, Entry, next_version, read_entry
from ctseg.serving.publish import EntryDraft, PlanDraft, Runtime, add_plan, publish

if TYPE_CHECKING:
    from ctseg.deploy.tensorrt_plan import Compiler, PlanOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How a bundle becomes an entry.

    Attributes:
        backend: Triton's backend.
        precision: Which network.
        name: Name of the model; None takes the bundle's.
        version: Version number; None takes the next free one.
        runtime: What the python backend runs; None measures and takes the fastest that passes the gate.
        max_batch_size: Most patches in one request; None takes the bundle's.
        instance_count: Instances of the model.
        max_queue_delay_us: How long Triton may hold a request to join it with others.
        threads: CPU threads of an instance of the python backend; 0 shares the CPUs.
        warmup: Let Triton run one batch before the model is ready.
        if_needed: Build only if no version was built from this input, by these tools, for this machine.
        accept_unproven: Write an entry that failed the gate, marked as unproven.
        prove_live: Before the entry is written, start a server on a copy of it and compare its answers too.
        plan: How a TensorRT plan is compiled; its batches are the request's.
        server_tensorrt: TensorRT version of the server; None asks the library on this machine.
    """

    backend: Backend = "python"
    precision: Precision = "fp32"
    name: str | None = None
    version: int | None = None
    runtime: Runtime | None = None
    max_batch_size: int | None = None
    instance_count: int = 1
    max_queue_delay_us: int = 2000
    threads: int = 0
    warmup: bool = False
    if_needed: bool = False
    accept_unproven: bool = False
    prove_live: bool = False
    plan: "PlanOptions | None" = None
    server_tensorrt: str | None = None


@dataclass(frozen=True)
class _Job:
    """One build."""

    bundle: Bundle
    spec: ModelSpec
    source: Variant
    repository: Path
    options: BuildOptions
    report: Callable[[str], None]
    compiler: "Compiler | None" = None

    @cached_property
    def data(self) -> ParityData:
        return self.bundle.parity_data()

    @property
    def model_file(self) -> Path:
        return self.bundle.folder / self.source.file

    def require(self, check: Check) -> None:
        self.report(summary([check]))
        require(check, model=self.spec.name, accept_unproven=self.options.accept_unproven, data=self.data)


@dataclass(frozen=True)
class _Candidate:
    """A way to run the network on this machine, and how it did."""

    runtime: Runtime
    precision_hint: str
    check: Check
    seconds: float


def build_entry(
    bundle_folder: Path,
    repository: Path,
    options: BuildOptions = BuildOptions(),
    *,
    report: Callable[[str], None] = _log.info,
    compiler: "Compiler | None" = None,
) -> Entry:
    """Build an entry of a Triton model repository from a bundle.

    Args:
        bundle_folder: What ``ctseg export`` wrote; only read.
        repository: Triton's model repository.
        options: How.
        report: Takes lines that say how it goes.
        compiler: TensorRT and GPU; None takes this machine's.

    Returns:
        The entry, the new version with it. Where ``if_needed`` found nothing to do: the entry up to the version
        that was built for this machine; newer ones are then the same network, built for others.

    Raises:
        SpecError: The bundle is broken or lacks the precision, or the repository has another model of that name.
        ParityError: What was built does not give PyTorch's labels.
        SetupError: A runtime, a GPU or a compiler is missing, or another writer holds the repository.
        OutputError: The repository cannot be written.
    """
    bundle = read_bundle(bundle_folder)
    spec = _spec_of(bundle, options)
    source = bundle.variant(options.precision)
    if not source.proven and not options.accept_unproven:
        raise ParityError(
            f"{spec.name}: {bundle.folder / source.file} is not proven: "
            f"{'; '.join(item for check in source.checks for item in check.problems) or 'no real scan was given'}; "
            "--accept-unproven builds it all the same, and every client will warn"
        )
    builder = {"python": _build_python, "onnxruntime": _build_onnxruntime, "tensorrt": _build_tensorrt}[options.backend]
    return builder(_Job(bundle, spec, source, repository, options, report, compiler))


def _spec_of(bundle: Bundle, options: BuildOptions) -> ModelSpec:
    spec = bundle.spec_of(options.precision)
    changes: dict[str, Any] = {}
    if options.name is not None:
        changes["name"] = options.name
    if options.max_batch_size is not None:
        changes["max_batch_size"] = options.max_batch_size
    return ModelSpec.validated({**spec.model_dump(), **changes}, source=f"spec of {bundle.folder}")


def _finish(job: _Job, *, model_file: Path, check: Check, build_info: Mapping[str, Any], **entry: Any) -> Entry:
    """Write the entry with its spec, ``build.json`` and parity report."""
    proven = job.source.proven and job.data.is_real and check.proves
    parity = check.as_parity(detail=check.network)
    final = job.spec.model_copy(
        update={"parity": parity if proven else parity.model_copy(update={"state": "unproven"})}
    )
    info = {**build_info, **_identity(job), "created": _now(), "ctseg": version("ctseg")}

    def write(repository: Path, number: int, checks: tuple[Check, ...]) -> Entry:
        draft = EntryDraft(
            spec=final,
            backend=job.options.backend,
            model_file=model_file,
            instance_count=job.options.instance_count,
            max_queue_delay_us=job.options.max_queue_delay_us,
            warmup=job.options.warmup,
            build_info=info,
            documents=_reports(job, checks),
            **entry,
        )
        return publish(repository, draft, number)

    checks: tuple[Check, ...] = (check,)
    if job.options.prove_live:  # in a repository of its own: what fails is never seen by a server that watches
        with tempfile.TemporaryDirectory(prefix="ctseg-live-") as temporary:
            write(Path(temporary), 1, checks)
            live = prove_live(
                job.bundle.folder,
                Path(temporary),
                job.spec.name,
                accept_unproven=job.options.accept_unproven,
                report=job.report,
            )
            checks = (check, live)
    return write(job.repository, job.options.version or next_version(job.repository, job.spec.name), checks)


def _reports(job: _Job, checks: tuple[Check, ...], suffix: str = "") -> dict[str, str]:
    """Return the parity report, for programs and for people, by file name."""
    report = ParityReport(
        model=job.spec.name,
        network_sha256=job.spec.network_sha256,
        data=job.data.source,
        created=_now(),
        variants=(job.source.model_copy(update={"checks": checks}),),
    )
    return {f"parity{suffix}.json": report.to_json(), f"parity{suffix}.md": report.to_markdown()}


def _identity(job: _Job) -> dict[str, Any]:
    """What of the bundle and the options a build depends on."""
    return {
        "onnx_sha256": job.source.sha256,
        "network_sha256": job.spec.network_sha256,
        "spec_digest": job.spec.digest,
        "precision": job.options.precision,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _entry_on_disk(job: _Job) -> Entry | None:
    folder = job.repository / job.spec.name
    return read_entry(folder) if folder.is_dir() else None


def _is_same(built: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(built.get(key) == value for key, value in expected.items())


def _up_to_date(job: _Job, expected: Mapping[str, Any]) -> Entry | None:
    """Return the entry up to a version that was built from this input, by these tools, for this machine.

    Newer versions of the same input do not matter: they are for other machines that share the repository.
    """
    entry = _entry_on_disk(job) if job.options.if_needed else None
    if entry is None:
        return None
    for count in range(len(entry.versions), 0, -1):
        found = replace(entry, versions=entry.versions[:count])
        builds = _plan_builds(found) if found.backend == "tensorrt" else {"": found.newest.build}
        here = builds.get(str(expected.get("compute_capability", "")), {})
        is_proven = found.newest.spec.parity.state == "proven" or job.options.accept_unproven
        if _is_same(here, {**_identity(job), **expected}) and is_proven:
            job.report(f"{job.spec.name}: version {found.newest.version} is up to date")
            return found
        if not _is_same(found.newest.build, _identity(job)):
            return None
    return None


# --- python: ONNX Runtime or OpenVINO on the CPU ------------------------------------------------


def _build_python(job: _Job) -> Entry:
    options = job.options
    runtimes = (options.runtime,) if options.runtime else available_runtimes()
    if options.precision == "bf16":
        runtimes = tuple(name for name in runtimes if name == "openvino")
        if not runtimes:
            raise SetupError(f"{job.spec.name}: of the runtimes here only OpenVINO has bf16: `pip install openvino`")
    if not runtimes:
        raise SetupError(f"{job.spec.name}: no runtime is installed: `pip install ctseg[serve]`")
    tools = {"runtimes": sorted(describe_runtime(name) for name in runtimes), "machine": machine()}
    if same := _up_to_date(job, tools):
        return same
    require_writable(job.repository, name=job.spec.name)
    candidates = []
    for runtime in runtimes:
        candidate = _try(job, runtime)
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
    return _finish(
        job,
        model_file=job.model_file,
        check=best.check,
        build_info=info,
        runtime=best.runtime,
        precision_hint=best.precision_hint,
        threads=options.threads,
    )


def _try(job: _Job, runtime: str) -> _Candidate:
    """Run the network on this machine's CPU, compare it with PyTorch, and time it."""
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
    seconds = seconds_per_patch(network, job.spec)
    return _Candidate("openvino" if runtime == "openvino" else "onnxruntime", hint, check, seconds)


# --- onnxruntime: Triton's own backend ----------------------------------------------------------


def _build_onnxruntime(job: _Job) -> Entry:
    if job.options.precision == "bf16":
        raise SetupError(f"{job.spec.name}: ONNX Runtime has no bf16 for this network: take fp32 or fp16")
    tools = {"runtimes": [describe_runtime("onnxruntime")]}
    if same := _up_to_date(job, tools):
        return same
    require_writable(job.repository, name=job.spec.name)
    check = _try(job, "onnxruntime").check
    job.require(check)
    # Triton's backend brings its own ONNX Runtime: the live check is what proves that one
    return _finish(job, model_file=job.model_file, check=check, build_info={**tools, "network": check.network})


# --- tensorrt -----------------------------------------------------------------------------------


def _build_tensorrt(job: _Job) -> Entry:
    from ctseg.deploy.tensorrt_plan import PlanOptions, TensorRt, require_precision

    name, precision = job.spec.name, job.options.precision
    if precision == "bf16":
        raise SetupError(
            f"{name}: TensorRT takes its precision from the graph, and the bundle's ONNX has no bf16: "
            "take --precision fp16"
        )
    compiler = job.compiler or TensorRt(job.options.server_tensorrt)
    gpu = compiler.gpu
    plan_options = replace(
        job.options.plan or PlanOptions(), max_batch=job.spec.max_batch_size, opt_batch=job.spec.max_batch_size
    )
    tools = {
        "tensorrt": compiler.version,
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "profile": [plan_options.min_batch, plan_options.opt_batch, plan_options.max_batch],
    }
    entry = _entry_on_disk(job)
    built = None if entry is None else _plan_builds(entry)
    if same := _up_to_date(job, tools):
        return same
    require_writable(job.repository, name=name)
    job.report(f"{name}: TensorRT {compiler.version} builds for {gpu.name} ({gpu.compute_capability})")
    plan = compiler.build(job.model_file, plan_options)
    network, types = compiler.load(plan.data, job.spec)
    proofs = require_precision(
        types, precision, network_types=plan.network_types, source=f"{name}: the plan built from {job.model_file}"
    )
    what = f"plan of {job.source.file} in TensorRT {compiler.version} on {gpu.name}"
    check = check_network(
        network, job.data, job.spec, what=what, precision=precision, sha256=hashlib.sha256(plan.data).hexdigest()
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
        "seconds_per_patch": round(seconds_per_patch(network, job.spec), 5),
        "plan_bytes": len(plan.data),
    }
    with tempfile.TemporaryDirectory(prefix="ctseg-plan-") as temporary:
        file = Path(temporary) / "model.plan"
        file.write_bytes(plan.data)
        if entry is not None and built and job.options.version is None and _lacks_only_this_gpu(job, built, tools):
            identity = {**_identity(job), "created": _now(), "ctseg": version("ctseg")}
            number = entry.newest.version
            draft = PlanDraft(
                plan=file,
                compute_capability=gpu.compute_capability,
                build_info={**info, **identity},
                documents=_reports(job, (check,), f"_sm{gpu.compute_capability.replace('.', '')}"),
            )
            return add_plan(job.repository, name, number, draft)
        return _finish(job, model_file=file, check=check, build_info=info, compute_capability=gpu.compute_capability)


def _plan_builds(entry: Entry) -> dict[str, dict[str, Any]]:
    """Return what the newest version's plans were built with, by compute capability."""
    found = [dict(entry.newest.build)]
    for file in sorted(entry.newest.folder.glob("build_sm*.json")):
        found.append(json.loads(file.read_text(encoding="utf-8")))
    return {str(item.get("compute_capability")): item for item in found}


def _lacks_only_this_gpu(job: _Job, built: Mapping[str, Mapping[str, Any]], tools: Mapping[str, Any]) -> bool:
    if tools["compute_capability"] in built:
        return False
    expected = {**_identity(job), "tensorrt": tools["tensorrt"], "profile": tools["profile"]}
    return all(_is_same(item, expected) for item in built.values())


# --- the bare form: one ONNX file to one plan ---------------------------------------------------


def build_plan_file(
    onnx_file: Path,
    output: Path,
    *,
    precision: Precision = "fp32",
    plan: "PlanOptions | None" = None,
    accept_unproven: bool = False,
    server_tensorrt: str | None = None,
    report: Callable[[str], None] = _log.info,
    compiler: "Compiler | None" = None,
) -> Path:
    """Compile an ONNX file to a TensorRT plan, without a bundle.

    There is no scan to prove it with: the plan's logits of random patches are compared with ONNX Runtime's
    of the FP32 graph. ``<output>.json`` records what the plan was built with.

    Args:
        onnx_file: An FP32 graph with one input and one output, dynamic in the batch only; or an FP16 one.
        output: The plan.
        precision: ``fp16`` converts an FP32 graph.
        plan: How it is compiled.
        accept_unproven: Write the plan whatever the comparison says.
        server_tensorrt: TensorRT version of the server; None asks the library on this machine.
        report: Takes lines that say how it goes.
        compiler: TensorRT and GPU; None takes this machine's.

    Returns:
        ``output``.

    Raises:
        SpecError: The file is no such graph, or TensorRT does not support it.
        SetupError: There is no GPU, no TensorRT, or not the server's.
        ParityError: The plan's logits differ too much.
        OutputError: The plan cannot be written.
    """
    from ctseg.deploy.tensorrt_plan import PlanOptions, TensorRt, require_precision

    if precision == "bf16":
        raise SetupError(f"{onnx_file}: bf16 plans are not built: take fp16")
    compiler = compiler or TensorRt(server_tensorrt)
    plan = plan or PlanOptions()
    with tempfile.TemporaryDirectory(prefix="ctseg-plan-") as temporary:
        source, spec = _typed_graph(onnx_file, precision, Path(temporary), plan.max_batch)
        built = compiler.build(source, plan)
        network, types = compiler.load(built.data, spec)
        proofs = require_precision(types, precision, network_types=built.network_types, source=str(onnx_file))
        patches = np.random.default_rng(0).standard_normal((1, len(spec.channels), *spec.patch_size)).astype(np.float32)
        reference = onnxruntime_network(onnx_file)(patches)
        comparison = compare("random patches", reference, network(patches), spec, precision, with_labels=False)
    report(f"  random patches against {onnx_file.name}: relative L2 {comparison.relative_l2:.1e}")
    if comparison.problems and not accept_unproven:
        raise ParityError(
            f"{onnx_file}: {'; '.join(comparison.problems)}; --accept-unproven writes the plan all the same"
        )
    info = {
        "tensorrt": compiler.version,
        "gpu": compiler.gpu.name,
        "compute_capability": compiler.gpu.compute_capability,
        "profile": [plan.min_batch, plan.opt_batch, plan.max_batch],
        "onnx_sha256": sha256_of(onnx_file),
        "precision": precision,
        "network_layers": dict(built.network_types),
        "engine_layers": dict(types),
        "precision_proven_by": proofs,
        "relative_l2_random_patches": comparison.relative_l2,
        "seconds": round(built.seconds, 1),
        "created": _now(),
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for path, data in ((output, built.data), (Path(f"{output}.json"), json.dumps(info, indent=2).encode())):
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            unfinished.write_bytes(data)
            unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error}") from error
    return output


def _typed_graph(onnx_file: Path, precision: Precision, folder: Path, max_batch: int) -> tuple[Path, ModelSpec]:
    """Return the graph in its precision, and a spec that says just enough to run patches."""
    import onnx

    from ctseg.deploy.precision import fp16_ladder

    try:
        graph = onnx.load(onnx_file, format="protobuf")
        onnx.checker.check_model(graph)
        (feed,), (answer,) = graph.graph.input, graph.graph.output
    except (OSError, ValueError, onnx.checker.ValidationError, DecodeError) as error:
        raise SpecError(f"{onnx_file}: not an ONNX file with one input and one output: {error}") from error
    source = onnx_file
    is_fp32 = feed.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and not any(
        item.data_type == onnx.TensorProto.FLOAT16 for item in graph.graph.initializer
    )
    if precision == "fp16" and is_fp32:
        source = folder / "fp16.onnx"
        onnx.save(next(fp16_ladder(graph, np.empty((0,), np.float32))).mixed, source)
    shapes = [[side.dim_value for side in value.type.tensor_type.shape.dim] for value in (feed, answer)]
    names = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}
    intensity = dict.fromkeys(("mean", "std", "percentile_00_5", "percentile_99_5"), 0.0)
    spatial = shapes[0][2:]
    raw = {
        "name": "graph",
        "configuration": "unknown",
        "channels": [
            {"name": str(i), "normalization": "NoNormalization", "intensity": intensity} for i in range(shapes[0][1])
        ],
        "reader": "SimpleITKIO",
        "file_ending": ".nii.gz",
        "transpose_forward": (0, 1, 2),
        "spacing_mm": [1.0] * len(spatial),
        "patch_size": spatial,
        "resampling_data": {"function": "no_resampling_hack"},
        "resampling_logits": {"function": "no_resampling_hack"},
        "labels": [{"name": str(i), "values": (i,)} for i in range(shapes[1][1])],
        "mirroring": "none",
        "input": {"name": feed.name, "dtype": names.get(feed.type.tensor_type.elem_type)},
        "output": {"name": answer.name, "dtype": names.get(answer.type.tensor_type.elem_type)},
        "max_batch_size": max_batch,
        "precision": precision,
    }
    return source, ModelSpec.validated(raw, source=str(onnx_file))


# --- after start: the live server ---------------------------------------------------------------


def check_live(predictor: PatchPredictor, bundle: Bundle, precision: Precision) -> Check:
    """Compare a live server with PyTorch on the bundle's parity data.

    Args:
        predictor: Connected to the server.
        bundle: What the model was built from.
        precision: Which network it serves.

    Raises:
        SpecError: The server serves another network than the bundle's.
        ServerError: The server fails.
    """
    spec = predictor.spec
    if spec.network_sha256 != bundle.spec.network_sha256:
        raise SpecError(
            f"{spec.name}: the server serves network {spec.network_sha256[:12]}, the bundle {bundle.folder} holds "
            f"{bundle.spec.network_sha256[:12]}"
        )
    return check_network(
        predictor.predict, bundle.parity_data(), spec, what=f"live server, {spec.name}", precision=precision
    )


def prove_live(
    bundle_folder: Path,
    repository: Path,
    name: str,
    *,
    urls: Sequence[str] = (),
    accept_unproven: bool = False,
    report: Callable[[str], None] = _log.info,
) -> Check:
    """Prove a served model against PyTorch: through the wire, the server and its backend.

    Args:
        bundle_folder: What the model was built from.
        repository: The model repository; served by an embedded server unless ``urls`` are given.
        name: Name of the model.
        urls: Running servers.
        accept_unproven: Return a failed check instead of refusing.
        report: Takes lines that say how it goes.

    Raises:
        ParityError: The answers are not PyTorch's.
        SetupError: No server can be started here.
        ServerError: The server fails.
    """
    from ctseg.serving.server import embedded_server
    from ctseg.triton.options import ClientOptions
    from ctseg.triton.predictor import connect

    bundle = read_bundle(bundle_folder)
    with contextlib.ExitStack() as stack:
        options = ClientOptions()
        if not urls:
            server = stack.enter_context(embedded_server(repository, [name]))
            urls, options = (server.url,), ClientOptions(headers=server.headers)
        predictor = stack.enter_context(connect(urls, name, options=options))
        check = check_live(predictor, bundle, predictor.spec.precision)
    report(summary([check]))
    require(check, model=name, accept_unproven=accept_unproven, data=bundle.parity_data())
    return check
