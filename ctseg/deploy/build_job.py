"""One build of an entry: what all backends share, from the question whether it is needed to the published version."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ctseg.deploy.bundle import Bundle
from ctseg.deploy.exact_norms import write_with_exact_norms
from ctseg.deploy.live_proof import prove_live
from ctseg.deploy.onnx_file import data_files
from ctseg.deploy.parity import FAST_FP32, Limits, require
from ctseg.deploy.parity_data import ParityData
from ctseg.deploy.parity_report import Check, ParityReport, Variant, summary
from ctseg.deploy.runtimes import Measure
from ctseg.deploy.tensorrt_plan import Compiler, PlanOptions
from ctseg.documents import canonical
from ctseg.files.digests import sha256_of_files
from ctseg.files.owned_folder import owned_folder
from ctseg.model_spec import ModelSpec, Precision
from ctseg.serving.entries import Backend, Entry, next_version, read_entry
from ctseg.serving.publish import Device, EntryDraft, PlanDraft, Runtime, add_plan, publish

RuntimeChoice = Literal["exact", "fast", "onnxruntime", "openvino"]
"""What runs a network on a CPU: ``exact`` takes the first runtime here that passes with exact sums, OpenVINO before
ONNX Runtime; a name takes that one, with exact sums, too; ``fast`` takes the fastest that passes, whatever it sums."""


@dataclass(frozen=True)
class BuildOptions:
    """How a bundle becomes an entry.

    Attributes:
        backend: Triton's backend.
        precision: Which network.
        name: Name of the model; None takes the bundle's.
        version: Version number; None takes the next free one.
        device: Where the python backend runs the network: ``cpu``, or ``gpu`` for ONNX Runtime on CUDA.
        runtime: What runs the network on a CPU, and how exactly.
        max_batch_size: Most patches in one request; None takes the bundle's.
        instance_count: Instances of the model.
        max_queue_delay_us: How long Triton may hold a request to join it with others.
        threads: CPU threads of an instance of the python backend; 0 shares the CPUs.
        warmup: Let Triton run one batch before the model is ready.
        if_needed: Build only if no version was built from this input, by these tools, for this machine.
        accept_unproven: Write an entry that failed the gate, marked as unproven.
        whole_scans: Write the entry that takes whole scans beside the network's.
        prove_live: Before the entry is written, start a server on a copy of it and compare its answers too.
        plan: How a TensorRT plan is compiled; its batches are the request's.
        server_tensorrt: TensorRT version of the server; None asks the library on this machine.
    """

    backend: Backend = "python"
    precision: Precision = "fp32"
    name: str | None = None
    version: int | None = None
    device: Device = "cpu"
    runtime: RuntimeChoice = "exact"
    max_batch_size: int | None = None
    instance_count: int = 1
    max_queue_delay_us: int = 2000
    threads: int = 0
    warmup: bool = False
    if_needed: bool = False
    accept_unproven: bool = False
    whole_scans: bool = True
    prove_live: bool = False
    plan: PlanOptions | None = None
    server_tensorrt: str | None = None


@dataclass(frozen=True)
class Job:
    """One build.

    Attributes:
        bundle: What is built from.
        spec: Of the network in the precision that was asked for, under the name that it will have.
        source: The network's file in the bundle.
        repository: Triton's model repository.
        options: How.
        report: Takes lines that say how it goes.
        measure: Times a network.
        compiler: TensorRT and GPU; None takes this machine's.
        rewritten: The network's file in the form that is served; None: that of the bundle.
    """

    bundle: Bundle
    spec: ModelSpec
    source: Variant
    repository: Path
    options: BuildOptions
    report: Callable[[str], None]
    measure: Measure
    compiler: Compiler | None = None
    rewritten: Path | None = None

    @cached_property
    def parity_data(self) -> tuple[ParityData, ...]:
        """What the network is compared on: scans and phantom, as far as the bundle has them."""
        return self.bundle.parity_data()

    @property
    def model_file(self) -> Path:
        """The ONNX file that is served, or compiled."""
        return self.rewritten or self.bundle.folder / self.source.file

    @cached_property
    def data_files(self) -> tuple[Path, ...]:
        """Files beside the ONNX file with its weights; none for most."""
        return data_files(self.model_file)

    @property
    def identity(self) -> dict[str, Any]:
        """What of the bundle and the options a build depends on, as it stands in ``build.json``."""
        sums = {} if self.options.backend == "tensorrt" else {"exact_sums": self.exact_sums}
        return {
            "onnx_sha256": self.source.sha256,
            "network_sha256": self.spec.network_sha256,
            "spec_digest": self.spec.digest,
            "presentation_sha256": self._presentation_sha256,
            "precision": self.options.precision,
            **sums,
        }

    @property
    def _presentation_sha256(self) -> str | None:
        said = {name: presentation.model_dump(mode="json") for name, presentation in self.spec.presentation.items()}
        return hashlib.sha256(canonical(said)).hexdigest() if said else None

    @property
    def exact_sums(self) -> bool:
        """Whether norms sum exactly: on a CPU, unless it shall be fast, or works in BF16."""
        options = self.options
        on_cpu = options.device == "cpu" and options.backend != "tensorrt"
        return on_cpu and options.runtime != "fast" and options.precision != "bf16"

    @property
    def limits(self) -> Limits | None:
        """What the network may differ by; None: what its precision allows."""
        return FAST_FP32 if self.options.precision == "fp32" and not self.exact_sums else None

    def as_served(self, folder: Path) -> "Job":
        """Return the build with the network's file in the form that is served, written into a folder if need be."""
        return replace(self, rewritten=write_with_exact_norms(self.model_file, folder)) if self.exact_sums else self

    def require(self, check: Check) -> None:
        """Tell what was found, and go on only if it passes or is accepted.

        Raises:
            ParityError: It does not pass.
        """
        self.report(summary([check]))
        require(check, model=self.spec.name, accept_unproven=self.options.accept_unproven)

    def entry_on_disk(self) -> Entry | None:
        """Return the entry of this name, None where there is none."""
        folder = self.repository / self.spec.name
        return read_entry(folder) if folder.is_dir() else None


@dataclass(frozen=True)
class Built:
    """What a backend has built and compared with PyTorch.

    Attributes:
        model_file: What Triton will load.
        check: The comparison.
        info: Content of ``build.json``, but for what every build has.
        runtime: What the python backend runs.
        precision_hint: OpenVINO's inference precision.
        threads: CPU threads of an instance of the python backend.
        compute_capability: Of the GPU that a plan is for.
        data_files: Files beside the model file: weights that it needs, and the network without votes.
    """

    model_file: Path
    check: Check
    info: Mapping[str, Any]
    runtime: Runtime = "onnxruntime"
    precision_hint: str = ""
    threads: int = 0
    compute_capability: str = ""
    data_files: tuple[Path, ...] = ()


def up_to_date(job: Job, expected: Mapping[str, Any]) -> Entry | None:
    """Return the entry up to a version that was built from this input, by these tools, for this machine.

    Newer versions of the same input do not matter: they are for other machines that share the repository.

    Args:
        job: The build; None is returned unless it is to happen only if needed.
        expected: What ``build.json`` has to say about tools and machine.
    """
    entry = job.entry_on_disk() if job.options.if_needed else None
    if entry is None:
        return None
    for count in range(len(entry.versions), 0, -1):
        found = replace(entry, versions=entry.versions[:count])
        builds = plan_builds(found) if found.backend == "tensorrt" else {"": found.newest.build}
        here = builds.get(str(expected.get("compute_capability", "")), {})
        is_proven = found.newest.spec.parity.state == "proven" or job.options.accept_unproven
        if is_same(here, {**job.identity, **expected}) and is_proven:
            job.report(f"{job.spec.name}: version {found.newest.version} is up to date")
            return found
        if not is_same(found.newest.build, job.identity):
            return None
    return None


def plan_builds(entry: Entry) -> dict[str, dict[str, Any]]:
    """Return what the newest version's plans were built with, by compute capability."""
    found = [dict(entry.newest.build)]
    for file in sorted(entry.newest.folder.glob("build_sm*.json")):
        found.append(json.loads(file.read_text(encoding="utf-8")))
    return {str(item.get("compute_capability")): item for item in found}


def is_same(built: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether a ``build.json`` says all that is expected."""
    return all(built.get(key) == value for key, value in expected.items())


def finish(job: Job, built: Built) -> Entry:
    """Publish a version with its spec, ``build.json`` and parity report, proven live before if that was asked for.

    Raises:
        ParityError: The live server's answers are not PyTorch's.
        SpecError: The repository has another model of that name.
        OutputError: The repository cannot be written.
    """
    check = built.check
    checks: tuple[Check, ...] = (check,)
    if job.options.prove_live:  # in a repository of its own: what fails is never seen by a server that watches
        with owned_folder("ctseg-live-") as temporary:
            publish(temporary, _draft(job, built, checks), 1)
            live = prove_live(
                job.bundle.folder,
                temporary,
                job.spec.name,
                accept_unproven=job.options.accept_unproven,
                report=job.report,
            )
            checks = (check, live)
    number = job.options.version or next_version(job.repository, job.spec.name)
    return publish(job.repository, _draft(job, built, checks), number)


def add_to_newest(job: Job, entry: Entry, built: Built) -> Entry:
    """Add a plan for another GPU type to the newest version.

    Raises:
        OutputError: The repository cannot be written.
    """
    capability = built.compute_capability
    draft = PlanDraft(
        plan=built.model_file,
        compute_capability=capability,
        build_info=_build_info(job, built),
        documents=_reports(job, (built.check,), f"_sm{capability.replace('.', '')}"),
    )
    return add_plan(job.repository, job.spec.name, entry.newest.version, draft)


def _draft(job: Job, built: Built, checks: tuple[Check, ...]) -> EntryDraft:
    parity = built.check.as_parity(detail=built.check.network)
    parity = parity.model_copy(update={"graph_proven_with": job.source.proven_with})
    return EntryDraft(
        spec=job.spec.model_copy(
            update={"parity": parity if job.source.proven else parity.model_copy(update={"state": "unproven"})}
        ),
        backend=job.options.backend,
        model_file=built.model_file,
        data_files=built.data_files,
        runtime=built.runtime,
        precision_hint=built.precision_hint,
        device=job.options.device if job.options.backend == "python" else "cpu",
        instance_count=job.options.instance_count,
        threads=built.threads,
        max_queue_delay_us=job.options.max_queue_delay_us,
        warmup=job.options.warmup,
        whole_scans=job.options.whole_scans,
        compute_capability=built.compute_capability,
        build_info=_build_info(job, built),
        documents=_reports(job, checks),
    )


def _build_info(job: Job, built: Built) -> dict[str, Any]:
    served = {} if job.options.backend == "tensorrt" else {"file_sha256": _sha256_of(built)}
    return {**built.info, **served, **job.identity, "created": now(), "ctseg": version("ctseg")}


def _sha256_of(built: Built) -> str:
    """Return the SHA-256 of what is served: the model file, and the files beside it in order of their names."""
    return sha256_of_files((built.model_file, *sorted(built.data_files, key=lambda file: file.name)))


def _reports(job: Job, checks: tuple[Check, ...], suffix: str = "") -> dict[str, str]:
    """Return the parity report, for programs and for people, by file name."""
    sources = {data.parity_set: data.source for data in job.parity_data}
    report = ParityReport(
        model=job.spec.name,
        network_sha256=job.spec.network_sha256,
        data=sources.get("scans", ""),
        phantom=sources.get("phantom", ""),
        created=now(),
        variants=(job.source.model_copy(update={"checks": checks}),),
    )
    return {f"parity{suffix}.json": report.to_json(), f"parity{suffix}.md": report.to_markdown()}


def now() -> str:
    """Return the time as documents say it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
