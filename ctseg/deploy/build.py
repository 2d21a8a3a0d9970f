"""From a bundle to an entry of a Triton model repository, proven on the machine that will serve it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ctseg.deploy.bundle import Bundle, read_bundle
from ctseg.deploy.parity import Check, Network, ParityData, ParityReport, Variant, check_network, require, summary
from ctseg.deploy.repository import Backend, Entry, Runtime, next_version, read_entry, write_entry
from ctseg.deploy.runtimes import (
    available_runtimes,
    describe_runtime,
    machine,
    onnxruntime_network,
    openvino_network,
    seconds_per_patch,
)
from ctseg.errors import ParityError, SetupError
from ctseg.model_spec import ModelSpec, Precision

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
        if_needed: Build only if what is there was built from other input, by another tool or for another machine.
        accept_unproven: Write an entry that failed the gate, marked as unproven.
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
) -> Entry:
    """Build an entry of a Triton model repository from a bundle.

    Args:
        bundle_folder: What ``ctseg export`` wrote; only read.
        repository: Triton's model repository.
        options: How.
        report: Takes lines that say how it goes.

    Returns:
        The entry, the new version with it. The entry as it was, where ``if_needed`` found nothing to do.

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
    return builder(bundle, spec, source, repository, options, report)


def _spec_of(bundle: Bundle, options: BuildOptions) -> ModelSpec:
    spec = bundle.spec_of(options.precision)
    changes: dict[str, Any] = {}
    if options.name is not None:
        changes["name"] = options.name
    if options.max_batch_size is not None:
        changes["max_batch_size"] = options.max_batch_size
    return ModelSpec.validated({**spec.model_dump(), **changes}, source=f"spec of {bundle.folder}")


def _finish(
    spec: ModelSpec,
    source: Variant,
    repository: Path,
    options: BuildOptions,
    *,
    model_file: Path,
    checks: tuple[Check, ...],
    data: ParityData,
    build_info: Mapping[str, Any],
    **entry: Any,
) -> Entry:
    """Write the entry with its spec, ``build.json`` and parity report."""
    parity = checks[0].as_parity(detail=str(build_info.get("network", ""))) if checks else spec.parity
    if not (source.proven and data.is_real and all(check.passed for check in checks)):
        parity = parity.model_copy(update={"state": "unproven"})
    final = spec.model_copy(update={"parity": parity})
    number = options.version or next_version(repository, spec.name)
    info = {
        **build_info,
        "onnx_sha256": source.sha256,
        "network_sha256": spec.network_sha256,
        "spec_digest": final.digest,
        "precision": options.precision,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ctseg": version("ctseg"),
    }
    written = write_entry(
        repository,
        final,
        number,
        backend=options.backend,
        model_file=model_file,
        instance_count=options.instance_count,
        max_queue_delay_us=options.max_queue_delay_us,
        warmup=options.warmup,
        build_info=info,
        **entry,
    )
    report = ParityReport(
        model=spec.name,
        network_sha256=spec.network_sha256,
        data=data.source,
        created=str(info["created"]),
        variants=(source.model_copy(update={"checks": checks}),),
    )
    for name, text in (("parity.json", report.to_json()), ("parity.md", report.to_markdown())):
        (written.newest.folder / name).write_text(text, encoding="utf-8")
    return written


# --- python: ONNX Runtime or OpenVINO on the CPU ------------------------------------------------


def _build_python(
    bundle: Bundle,
    spec: ModelSpec,
    source: Variant,
    repository: Path,
    options: BuildOptions,
    report: Callable[[str], None],
) -> Entry:
    data = bundle.parity_data()
    path = bundle.folder / source.file
    runtimes = (options.runtime,) if options.runtime else available_runtimes()
    if options.precision == "bf16":
        runtimes = tuple(name for name in runtimes if name == "openvino")
    if not runtimes:
        raise SetupError(
            f"{spec.name}: no runtime for {options.precision} on the CPU is installed: `pip install onnxruntime`"
            + (" does not have bf16: `pip install openvino`" if options.precision == "bf16" else "")
        )
    candidates = []
    for runtime in runtimes:
        candidate = _try(runtime, path, data, spec, options.precision, source.sha256)
        report(summary([candidate.check]))
        report(f"  {candidate.check.network}: {candidate.seconds:.3f} s a patch")
        candidates.append(candidate)
    passing = [candidate for candidate in candidates if candidate.check.passed] or candidates[:1]
    best = min(passing, key=lambda candidate: candidate.seconds)
    require(best.check, model=spec.name, accept_unproven=options.accept_unproven, data=data)
    info = {
        "network": best.check.network,
        "runtime": best.runtime,
        "runtime_version": describe_runtime(best.runtime),
        "seconds_per_patch": round(best.seconds, 4),
        "tried": {item.check.network: round(item.seconds, 4) for item in candidates},
        "machine": machine(),
    }
    if options.if_needed and (
        same := _same_build(repository, spec, source, {key: info[key] for key in ("runtime_version", "machine")})
    ):
        report(f"{spec.name}: version {same.newest.version} is up to date")
        return same
    return _finish(
        spec,
        source,
        repository,
        options,
        model_file=path,
        checks=(best.check,),
        data=data,
        build_info=info,
        runtime=best.runtime,
        precision_hint=best.precision_hint,
        threads=options.threads,
    )


def _try(runtime: str, path: Path, data: ParityData, spec: ModelSpec, precision: Precision, sha256: str) -> _Candidate:
    hint = "bf16" if precision == "bf16" else "f32"
    network: Network
    if runtime == "openvino":
        network, name, what = (
            openvino_network(path, precision_hint=hint),
            "openvino",
            f"{describe_runtime(runtime)} {hint}",
        )
    else:
        network, name, what, hint = onnxruntime_network(path), "onnxruntime", describe_runtime(runtime), ""
    check = check_network(
        network, data, spec, what=f"{path.name} in {what} on the CPU", precision=precision, sha256=sha256
    )
    return _Candidate(
        "openvino" if name == "openvino" else "onnxruntime", hint, check, seconds_per_patch(network, spec)
    )


def _same_build(repository: Path, spec: ModelSpec, source: Variant, expected: Mapping[str, Any]) -> Entry | None:
    """Return the entry if its newest version was built from this input, by these tools, for this machine."""
    folder = repository / spec.name
    if not folder.is_dir():
        return None
    entry = read_entry(folder)
    built = entry.newest.build
    same = built.get("onnx_sha256") == source.sha256 and built.get("spec_digest") == spec.digest
    return entry if same and all(built.get(key) == value for key, value in expected.items()) else None


# --- onnxruntime: Triton's own backend ----------------------------------------------------------


def _build_onnxruntime(
    bundle: Bundle,
    spec: ModelSpec,
    source: Variant,
    repository: Path,
    options: BuildOptions,
    report: Callable[[str], None],
) -> Entry:
    if options.precision == "bf16":
        raise SetupError(f"{spec.name}: ONNX Runtime has no bf16 for this network: take fp32 or fp16")
    data = bundle.parity_data()
    candidate = _try("onnxruntime", bundle.folder / source.file, data, spec, options.precision, source.sha256)
    report(summary([candidate.check]))
    require(candidate.check, model=spec.name, accept_unproven=options.accept_unproven, data=data)
    info = {
        "network": candidate.check.network,
        "runtime": "onnxruntime",
        "runtime_version": describe_runtime("onnxruntime"),
        "note": "Triton's onnxruntime backend brings its own ONNX Runtime: prove it with the live server",
    }
    if options.if_needed and (same := _same_build(repository, spec, source, {})):
        report(f"{spec.name}: version {same.newest.version} is up to date")
        return same
    return _finish(
        spec,
        source,
        repository,
        options,
        model_file=bundle.folder / source.file,
        checks=(candidate.check,),
        data=data,
        build_info=info,
    )


# --- tensorrt -----------------------------------------------------------------------------------


def _build_tensorrt(
    bundle: Bundle,
    spec: ModelSpec,
    source: Variant,
    repository: Path,
    options: BuildOptions,
    report: Callable[[str], None],
) -> Entry:
    raise SetupError(f"{spec.name}: this machine has no TensorRT")
