"""From a trained nnU-Net to a bundle: ONNX graphs, each proven against PyTorch."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctseg.deploy.bundle import (
    PAGE_NAME,
    PARITY_NAME,
    PARITY_SETS,
    Bundle,
    check_replaceable,
    model_name,
    write_bundle,
)
from ctseg.deploy.exact_norms import write_with_exact_norms
from ctseg.deploy.onnx_file import (
    MAX_ONE_FILE_BYTES,
    read_graph,
    remove_graph,
    sha256_of_network,
    without_weights,
    write_graph,
)
from ctseg.deploy.onnx_graph import DEFAULT_OPSET, onnx_graph_of, weight_bytes_of
from ctseg.deploy.parity import EXACT_SUMS, check_network, require
from ctseg.deploy.parity_data import ParityData, PreparedCase
from ctseg.deploy.parity_report import Check, ParityReport, Variant, summary
from ctseg.deploy.reference import parity_data_of
from ctseg.deploy.runtimes import describe_runtime, onnxruntime_network
from ctseg.deploy.trained_model import LoadedModel
from ctseg.deploy.training_volumes import training_labels_of, training_volumes_ml, with_training_volumes
from ctseg.errors import ParityError, SetupError
from ctseg.files.codes import check_labels
from ctseg.model_spec import SPEC_NAME, ModelSpec, Precision
from ctseg.predict.whole_scan import require_usable_name
from ctseg.presentation import LabelPresentation
from ctseg.stages import stage

if TYPE_CHECKING:
    from ctseg.deploy.precision import Attempt

Mirroring = Literal["graph", "client", "none"]

_log = logging.getLogger(__name__)


class LeftOutError(ParityError):
    """Mixed networks do not give PyTorch's labels; the bundle is written without them.

    Args:
        why: What was found of each.
        output: The bundle.
        written: What it has, for people.
    """

    def __init__(self, why: Sequence[ParityError], output: Path, *, written: str) -> None:
        them = "it" if len(why) == 1 else "them"
        super().__init__(
            f"{'; '.join(map(str, why))}; {output} is written without {them}, with {written}",
            settings=tuple(dict.fromkeys(("precision", *why[0].settings))),
        )
        self.why = tuple(why)


@dataclass(frozen=True)
class ExportOptions:
    """How a trained model becomes a bundle.

    Attributes:
        name: Name of the model in the Triton repository; None takes the data set's.
        mirroring: Where test-time mirroring happens.
        precisions: Networks to write; fp32 is always there.
        fp16_output: Let the FP16 network answer in FP16, which halves the wire.
        opset: ONNX operator set.
        max_batch_size: Most patches in one request.
        one_file_bytes: Weights from which on an ONNX file keeps them in another one beside it.
        accept_unproven: Write networks that failed the gate, marked as unproven.
        codes: How people and other systems call labels, by name; no digest and no label depends on it.
        votes: Let a network of several folds say how they vote, for their agreement; one of one fold says nothing.
    """

    name: str | None = None
    mirroring: Mirroring = "client"
    precisions: tuple[Precision, ...] = ("fp32",)
    fp16_output: bool = False
    opset: int = DEFAULT_OPSET
    max_batch_size: int = 4
    one_file_bytes: int = MAX_ONE_FILE_BYTES
    accept_unproven: bool = False
    codes: Mapping[str, LabelPresentation] = field(default_factory=dict)
    votes: bool = True

    def __post_init__(self) -> None:
        if self.name is not None:
            require_usable_name(self.name)


def export_model(
    model: LoadedModel,
    output: Path,
    options: ExportOptions = ExportOptions(),
    *,
    cases: Sequence[PreparedCase] = (),
    data_source: str = "",
    first_stage: ModelSpec | None = None,
    report: Callable[[str], None] = _log.info,
) -> Bundle:
    """Write the bundle of a trained model.

    Args:
        model: The trained model.
        output: Folder of the bundle; a bundle that is there is replaced.
        options: How.
        cases: Real scans to prove the graphs with; the first is run whole.
        data_source: Where they come from, for people.
        first_stage: Of the network whose labels the second stage of a cascade gets.
        report: Takes lines that say how it goes.

    Raises:
        LeftOutError: A mixed network does not give PyTorch's labels; the bundle is written without it.
        ParityError: The FP32 network does not, or there is no scan to prove it with; nothing is written.
        InputError: There are codes for labels that the model does not have.
        SpecError: The plans ask for something that ctseg does not reproduce, torch cannot export the network, or its
            name is that of an entry for whole scans.
        SetupError: ``output`` holds something else.
        OutputError: ``output`` cannot be written.
    """
    check_replaceable(output)
    mirroring = options.mirroring if model.mirror_axes else "none"
    name = options.name or model.default_name
    require_usable_name(name)
    spec = model.spec(
        name=name,
        mirroring=mirroring,
        max_batch_size=options.max_batch_size,
        first_stage=first_stage,
        votes=options.votes,
    )
    check_labels(options.codes, spec.named_values)
    if not cases and not options.accept_unproven:
        raise ParityError(
            f"{spec.name}: no real scan to prove the graph with: give real scans (nnU-Net's preprocessed data was not "
            "found either), or accept a model that is marked as unproven",
            settings=("cases", "accept_unproven"),
        )
    if options.name is None and spec.name != model.dataset_name.partition("_")[2].lower():
        report(f"{spec.name}: named after {model.dataset_name}, in letters that Triton takes")
    report(
        f"{spec.name}: {model.trainer} {model.configuration}, folds {', '.join(model.folds)}, mirroring: {mirroring}"
    )
    spec = spec.model_copy(update={"presentation": _presentation(model, spec, options, report)})
    scans, phantom = parity_data_of(model, spec, cases, data_source)
    report(f"  parity data: {scans.source}; {phantom.source}")

    left_out: list[ParityError] = []

    def fill(folder: Path) -> None:
        left_out.extend(_fill(folder, model, spec, (scans, phantom), options, report))

    bundle = write_bundle(output, fill)
    if left_out:
        written = ", ".join(variant.precision.upper() for variant in bundle.report.variants)
        raise LeftOutError(left_out, output, written=written)
    return bundle


def _presentation(
    model: LoadedModel, spec: ModelSpec, options: ExportOptions, report: Callable[[str], None]
) -> Mapping[str, LabelPresentation]:
    """Return what is said of the labels: their codes, and their volumes in the training set where that is at hand."""
    labels = training_labels_of(model)
    if labels is None:
        return dict(options.codes)
    report(f"  volumes of the training set's labels: {len(labels.files)} label maps in {labels.folder}")
    return with_training_volumes(options.codes, training_volumes_ml(labels, spec))


def _fill(
    folder: Path,
    model: LoadedModel,
    spec: ModelSpec,
    parity_data: tuple[ParityData, ParityData],
    options: ExportOptions,
    report: Callable[[str], None],
) -> list[ParityError]:
    """Write graphs, each proven, and what is known about them into the folder of a bundle.

    Returns:
        Why mixed networks were left out.
    """
    left_out = []
    with tempfile.TemporaryDirectory(prefix=".outside-", dir=folder) as temporary:  # what comes in holds the rest too
        job = _Job(folder, spec, *parity_data, options, report, Path(temporary))
        graph = _write_fp32(job, model)
        check = job.compared(folder / model_name("fp32"), "fp32")
        report(summary([check]))
        require(check, model=spec.name, accept_unproven=options.accept_unproven)
        variants = [job.variant("fp32", (check,))]
        for precision in ("fp16", "bf16"):
            if precision in options.precisions:
                try:
                    variants.append(_half_variant(job, precision, graph))
                except ParityError as error:
                    remove_graph(folder / model_name(precision))
                    left_out.append(error)
    detail = "" if job.scans.is_complete else "no real scan was given"
    final = spec.model_copy(update={"parity": check.as_parity(detail=detail)})
    (folder / SPEC_NAME).write_text(final.to_json() + "\n", encoding="utf-8")
    parity = ParityReport(
        model=spec.name,
        network_sha256=spec.network_sha256,
        data=job.scans.source,
        phantom=job.phantom.source,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        variants=tuple(variants),
    )
    (folder / PARITY_NAME).write_text(parity.to_json(), encoding="utf-8")
    (folder / PAGE_NAME).write_text(parity.to_markdown(), encoding="utf-8")
    for data in parity_data:
        data.write(folder / PARITY_SETS[data.parity_set])
    return left_out


@dataclass(frozen=True)
class _Job:
    """One export.

    Attributes:
        folder: Takes the bundle's files.
        spec: The network's contract.
        scans: What networks are compared on.
        phantom: What they are compared on besides, and alone where no patient's voxels may go.
        options: How.
        report: Takes lines that say how it goes.
        temporary: For what is needed in between.
    """

    folder: Path
    spec: ModelSpec
    scans: ParityData
    phantom: ParityData
    options: ExportOptions
    report: Callable[[str], None]
    temporary: Path

    def compared(self, path: Path, precision: Precision, *, stands_for: Path | None = None) -> Check:
        """Compare an ONNX file with PyTorch, with exact sums; a simulation is one that stands for another."""
        file = stands_for or path
        how = f", {precision.upper()} tensors rounded to {precision.upper()}," if stands_for else ""
        with tempfile.TemporaryDirectory(dir=self.temporary) as exact:
            return check_network(
                onnxruntime_network(write_with_exact_norms(path, Path(exact)), voting=self.spec),
                (self.scans, self.phantom),
                self.spec,
                what=f"{file.name}{how} in {describe_runtime('onnxruntime')} on the CPU {EXACT_SUMS}",
                precision=precision,
                sha256=sha256_of_network(file),
            )

    def variant(self, precision: Precision, checks: tuple[Check, ...], **extra: Any) -> Variant:
        """Return what is known about the file of a precision."""
        file = model_name(precision)
        sha256 = sha256_of_network(self.folder / file)
        return Variant(file=file, precision=precision, sha256=sha256, checks=checks, **extra)

    def write(self, graph: Any, path: Path) -> None:
        """Write an ONNX file, with its weights beside it if they are too large for one."""
        write_graph(graph, path, one_file_bytes=self.options.one_file_bytes)


def _write_fp32(job: _Job, model: LoadedModel) -> Any:
    """Write the FP32 network, and return its graph; weights that are too large for one file stay in theirs."""
    path = job.folder / model_name("fp32")
    if weight_bytes_of(model) < job.options.one_file_bytes:
        graph = onnx_graph_of(model, job.spec, opset=job.options.opset)
        job.write(graph, path)
        return graph
    with tempfile.TemporaryDirectory(dir=job.temporary) as exported:
        job.write(onnx_graph_of(model, job.spec, opset=job.options.opset, outside=Path(exported)), path)
    return read_graph(path)


def _half_variant(job: _Job, precision: Literal["fp16", "bf16"], graph: Any) -> Variant:
    """Take the first mixed network that passes; the most aggressive comes first.

    Where no real scan was given, none can be proven: the phantom and random patches are then what it has to pass.
    """
    output_dtype: Literal["FP32", "FP16"] = "FP16" if job.options.fp16_output and precision == "fp16" else "FP32"
    path = job.folder / model_name(precision)
    last: Variant | None = None
    for number, attempt in enumerate(_attempts(job, precision, graph, output_dtype), start=1):
        with (
            stage(f"{precision.upper()} network, attempt {number}"),
            tempfile.TemporaryDirectory(dir=job.temporary) as temporary,
        ):
            job.write(attempt.mixed, path)
            job.write(attempt.simulated, Path(temporary) / "simulated.onnx")
            checks = (job.compared(Path(temporary) / "simulated.onnx", precision, stands_for=path),)
        last = job.variant(precision, checks, kept_fp32=attempt.kept_fp32, output_dtype=output_dtype)
        job.report(f"  {precision}, kept in FP32: {attempt.kept_fp32}")
        job.report(summary(checks))
        if last.proven or (checks[0].passed and not job.scans.is_complete):
            _require_types_that_fit(path, precision, job.phantom)
            break
    if last is None:
        raise SetupError(f"{job.spec.name}: there is no mixed network to try")
    require(last.checks[0], model=job.spec.name, accept_unproven=job.options.accept_unproven)
    return last


def _attempts(
    job: _Job, precision: Literal["fp16", "bf16"], graph: Any, output_dtype: Literal["FP32", "FP16"]
) -> "Iterator[Attempt]":
    from ctseg.deploy.precision import bf16_attempts, fp16_attempts

    patches = np.concatenate([job.scans.patches, job.phantom.patches])  # FP16 has to hold the values of both
    attempts = (
        bf16_attempts(graph, outside=job.temporary)
        if precision == "bf16"
        else fp16_attempts(graph, patches, output_dtype=output_dtype, outside=job.temporary)
    )
    while True:
        with stage(f"a network in {precision.upper()} is made"):
            attempt = next(attempts, None)
        if attempt is None:
            return
        yield attempt


def _require_types_that_fit(path: Path, precision: Precision, data: ParityData) -> None:
    """Let the types of the real graph be checked, which its simulation says nothing about."""
    import onnx

    if precision == "fp16":
        onnxruntime_network(path)(data.random[:1])
    else:  # ONNX Runtime has no BF16 convolution on a CPU
        onnx.checker.check_model(without_weights(read_graph(path))[0], full_check=True)
