"""From a bundle to an entry of a Triton model repository, proven on the machine that will serve it.

The story is the same for every backend, and each has a module: is a build needed, is the repository writable, build,
compare with PyTorch on the bundle's parity data, publish.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ctseg.deploy.build_job import BuildOptions, Job
from ctseg.deploy.build_onnxruntime import build_onnxruntime
from ctseg.deploy.build_python import build_python
from ctseg.deploy.build_tensorrt import build_tensorrt
from ctseg.deploy.bundle import NO_PHANTOM, Bundle, read_bundle, source_precision
from ctseg.deploy.runtimes import Measure, seconds_per_patch
from ctseg.deploy.tensorrt_plan import Compiler
from ctseg.errors import ParityError, SetupError, SpecError
from ctseg.model_spec import ModelSpec
from ctseg.predict.whole_scan import require_usable_name
from ctseg.serving.entries import CONFIG_NAME, Backend, Entry, read_entry
from ctseg.serving.scan_entry import publish_scan_entry

__all__ = ["BuildOptions", "build_entry"]

_BACKENDS: Mapping[Backend, Callable[[Job], Entry]] = {
    "python": build_python,
    "onnxruntime": build_onnxruntime,
    "tensorrt": build_tensorrt,
}
_AS_USUAL = BuildOptions()
_log = logging.getLogger(__name__)


def build_entry(
    bundle_folder: Path,
    repository: Path,
    options: BuildOptions = _AS_USUAL,
    *,
    report: Callable[[str], None] = _log.info,
    compiler: Compiler | None = None,
    measure: Measure = seconds_per_patch,
) -> Entry:
    """Build an entry of a Triton model repository from a bundle.

    One process may build as many as it likes, one after the other.

    Args:
        bundle_folder: What ``ctseg export`` wrote; only read.
        repository: Triton's model repository.
        options: How.
        report: Takes lines that say how it goes.
        compiler: TensorRT and GPU; None takes this machine's.
        measure: Times a network; see :data:`ctseg.deploy.build_job.RuntimeChoice` for what follows from it.

    Returns:
        The entry, the new version with it. Where ``if_needed`` found nothing to do: the entry up to the version
        that was built for this machine; newer ones are then the same network, built for others.

    Raises:
        SpecError: The bundle is broken or lacks the precision, or the repository has another model of that name.
        ParityError: What was built does not give PyTorch's labels.
        SetupError: A runtime, a GPU or a compiler is missing, a GPU was asked for of a backend that has no choice,
            or another writer holds the repository.
        OutputError: The repository cannot be written.
    """
    if options.device == "gpu" and options.backend != "python":
        raise SetupError(
            f"{bundle_folder}: a device can be chosen for the python backend alone, not for {options.backend} (a "
            "TensorRT plan is always for a GPU): choose that backend, or leave the device to the other",
            settings=("device",),
        )
    bundle = read_bundle(bundle_folder)
    if bundle.parity_sets == ("scans",):
        report(f"{bundle.folder}: {NO_PHANTOM}: export the model again before one is made")
    spec = _spec_of(bundle, repository, options)
    source = bundle.variant(source_precision(options.precision, options.backend))
    if not source.proven and not options.accept_unproven:
        raise ParityError(
            f"{spec.name}: {bundle.folder / source.file} is not proven: "
            f"{'; '.join(item for check in source.checks for item in check.problems) or 'no real scan was given'}; "
            "it can be accepted all the same, and every client will warn",
            settings=("accept_unproven",),
        )
    require_usable_name(spec.name)
    job = Job(bundle, spec, source, repository, options, report, measure, compiler)
    entry = _BACKENDS[options.backend](job)
    if options.whole_scans:  # beside what was up to date, too
        publish_scan_entry(repository, entry)
    return entry


def _built_first_stage(spec: ModelSpec, repository: Path) -> dict[str, Any]:
    """Return what a second stage says of its first one, which is built: its digest depends on its precision.

    Raises:
        SpecError: It is not in the repository, or there is another network under its name.
    """
    stage = spec.previous_stage
    folder = repository / stage.model if stage is not None else repository
    if stage is None or not (folder / CONFIG_NAME).is_file():
        raise SpecError(
            f"{spec.name}: its first stage, {stage and stage.model}, is not in {repository}: build it there first"
        )
    built = read_entry(folder).newest.spec
    if built.network_sha256 != stage.network_sha256:
        raise SpecError(
            f"{spec.name}: {folder} has another network than the first stage that it was trained after: build that one "
            "first"
        )
    return {**stage.model_dump(), "digest": built.digest}


def _spec_of(bundle: Bundle, repository: Path, options: BuildOptions) -> ModelSpec:
    spec = bundle.spec_of(options.precision, options.backend)
    changes: dict[str, Any] = {}
    if spec.previous_stage is not None:
        changes["previous_stage"] = _built_first_stage(spec, repository)
    if options.name is not None:
        changes["name"] = options.name
    if options.max_batch_size is not None:
        changes["max_batch_size"] = options.max_batch_size
    return ModelSpec.validated({**spec.model_dump(), **changes}, source=f"spec of {bundle.folder}")
