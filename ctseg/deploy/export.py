"""From a trained nnU-Net to a bundle: ONNX graphs, each proven against PyTorch."""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ctseg.deploy.bundle import (
    DATA_NAME,
    PAGE_NAME,
    PARITY_NAME,
    Bundle,
    check_replaceable,
    model_name,
    write_bundle,
)
from ctseg.deploy.onnx_graph import DEFAULT_OPSET, check_size, onnx_graph_of
from ctseg.deploy.parity import check_network, require
from ctseg.deploy.parity_data import ParityData, PreparedCase
from ctseg.deploy.parity_report import Check, ParityReport, Variant, summary
from ctseg.deploy.reference import parity_data_of
from ctseg.deploy.runtimes import describe_runtime, onnxruntime_network
from ctseg.deploy.trained_model import LoadedModel
from ctseg.errors import ParityError, SetupError
from ctseg.files.digests import sha256_of_file
from ctseg.model_spec import SPEC_NAME, ModelSpec, Precision

Mirroring = Literal["graph", "client", "none"]

_log = logging.getLogger(__name__)


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
        accept_unproven: Write networks that failed the gate, marked as unproven.
    """

    name: str | None = None
    mirroring: Mirroring = "client"
    precisions: tuple[Precision, ...] = ("fp32",)
    fp16_output: bool = False
    opset: int = DEFAULT_OPSET
    max_batch_size: int = 4
    accept_unproven: bool = False


def export_model(
    model: LoadedModel,
    output: Path,
    options: ExportOptions = ExportOptions(),
    *,
    cases: Sequence[PreparedCase] = (),
    data_source: str = "",
    report: Callable[[str], None] = _log.info,
) -> Bundle:
    """Write the bundle of a trained model.

    Args:
        model: The trained model.
        output: Folder of the bundle; a bundle that is there is replaced.
        options: How.
        cases: Real scans to prove the graphs with; the first is run whole.
        data_source: Where they come from, for people.
        report: Takes lines that say how it goes.

    Raises:
        ParityError: A graph does not give PyTorch's labels, or there is no scan to prove it with.
        SpecError: The plans ask for something that ctseg does not reproduce, or torch cannot export the network.
        SetupError: ``output`` holds something else.
        OutputError: ``output`` cannot be written.
    """
    check_replaceable(output)
    mirroring = options.mirroring if model.mirror_axes else "none"
    spec = model.spec(
        name=options.name or model.default_name, mirroring=mirroring, max_batch_size=options.max_batch_size
    )
    spec.check_runnable()
    check_size(model, spec)
    if not cases and not options.accept_unproven:
        raise ParityError(
            f"{spec.name}: no real scan to prove the graph with: give real scans (nnU-Net's preprocessed data was not "
            "found either), or accept a model that is marked as unproven",
            settings=("cases", "accept_unproven"),
        )
    report(
        f"{spec.name}: {model.trainer} {model.configuration}, folds {', '.join(model.folds)}, mirroring: {mirroring}"
    )
    data = parity_data_of(model, spec, cases, data_source)
    report(f"  parity data: {data.source}")

    return write_bundle(output, lambda folder: _fill(folder, model, spec, data, options, report))


def _fill(
    folder: Path,
    model: LoadedModel,
    spec: ModelSpec,
    data: ParityData,
    options: ExportOptions,
    report: Callable[[str], None],
) -> None:
    """Write graphs, each proven, and what is known about them into the folder of a bundle."""
    import onnx

    graph = onnx_graph_of(model, spec, opset=options.opset)
    onnx.save(graph, folder / model_name("fp32"))
    check = _check_file(folder / model_name("fp32"), data, spec)
    report(summary([check]))
    require(check, model=spec.name, accept_unproven=options.accept_unproven, data=data)
    variants = [_variant(folder, "fp32", (check,))]
    if "fp16" in options.precisions:
        variants.append(_fp16_variant(folder, graph, data, spec, options, report))
    final = spec.model_copy(update={"parity": check.as_parity(detail="" if data.is_real else "no real scan was given")})
    (folder / SPEC_NAME).write_text(final.to_json() + "\n", encoding="utf-8")
    parity = ParityReport(
        model=spec.name,
        network_sha256=spec.network_sha256,
        data=data.source,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        variants=tuple(variants),
    )
    (folder / PARITY_NAME).write_text(parity.to_json(), encoding="utf-8")
    (folder / PAGE_NAME).write_text(parity.to_markdown(), encoding="utf-8")
    data.write(folder / DATA_NAME)


def _check_file(path: Path, data: ParityData, spec: ModelSpec) -> Check:
    return check_network(
        onnxruntime_network(path),
        data,
        spec,
        what=f"{path.name} in {describe_runtime('onnxruntime')} on the CPU",
        precision="fp32",
        sha256=sha256_of_file(path),
    )


def _variant(folder: Path, precision: Precision, checks: tuple[Check, ...], **extra: Any) -> Variant:
    file = model_name(precision)
    return Variant(file=file, precision=precision, sha256=sha256_of_file(folder / file), checks=checks, **extra)


def _fp16_variant(
    folder: Path, graph: Any, data: ParityData, spec: ModelSpec, options: ExportOptions, report: Callable[[str], None]
) -> Variant:
    """Take the first mixed network that passes; the most aggressive comes first."""
    import onnx

    from ctseg.deploy.precision import fp16_attempts

    output_dtype: Literal["FP32", "FP16"] = "FP16" if options.fp16_output else "FP32"
    path = folder / model_name("fp16")
    last: Variant | None = None
    for attempt in fp16_attempts(
        graph, np.asarray(data.patches if len(data.patches) else data.random), output_dtype=output_dtype
    ):
        onnx.save(attempt.mixed, path)
        with tempfile.TemporaryDirectory(prefix="ctseg-fp16-") as temporary:
            simulated = Path(temporary) / "simulated.onnx"
            onnx.save(attempt.simulated, simulated)
            checks = (
                check_network(
                    onnxruntime_network(simulated),
                    data,
                    spec,
                    what=f"{path.name}, FP16 tensors rounded to FP16, in {describe_runtime('onnxruntime')} on the CPU",
                    precision="fp16",
                    sha256=sha256_of_file(path),
                ),
            )
        last = _variant(folder, "fp16", checks, kept_fp32=attempt.kept_fp32, output_dtype=output_dtype)
        report(f"  fp16, kept in FP32: {attempt.kept_fp32}")
        report(summary(checks))
        if last.proven:
            onnxruntime_network(path)(data.random[:1])  # the types of the real graph fit together
            return last
    if last is None:
        raise SetupError(f"{spec.name}: there is no mixed network to try")
    try:
        require(last.checks[0], model=spec.name, accept_unproven=options.accept_unproven, data=data)
    except ParityError as error:
        raise ParityError(
            f"{error}; without the FP16 network the FP32 network is written, which passes",
            settings=(*error.settings, "precision"),
        ) from error
    return last
