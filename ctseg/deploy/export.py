"""From a trained nnU-Net to a bundle: ONNX graphs, each proven against PyTorch."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from ctseg.deploy.opset import lower_to_opset_17
from ctseg.deploy.parity import (
    CASE_STEP,
    Array,
    Check,
    Network,
    ParityData,
    ParityReport,
    Variant,
    case_logits_of,
    check_network,
    require,
    summary,
)
from ctseg.deploy.runtimes import describe_runtime, onnxruntime_network, sha256_of
from ctseg.deploy.trained_model import LoadedModel
from ctseg.errors import ParityError, SetupError, SpecError
from ctseg.model_spec import SPEC_NAME, ModelSpec, Precision
from ctseg.numerics.windows import cut_patches, plan_windows

if TYPE_CHECKING:
    import torch

Mirroring = Literal["graph", "client", "none"]

DEFAULT_OPSET = 17
EXPORTER_OPSET = 18
"""The lowest that torch's exporter writes."""
MAX_CASE_LOGITS_BYTES = 2 << 30
"""Above this the parity case is cut to its middle planes."""
MAX_ONE_FILE_BYTES = 1_900_000_000
"""Of weights. Protobuf stops at 2 GiB, and the graph itself and folded constants need room."""
_FOLDING_LIMIT_BYTES = 1 << 20
"""Constants larger than this stay computed in the graph: Swin's attention masks would grow it fivefold."""
_PATCHES_FROM_CASE = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedCase:
    """A scan as the network sees it.

    Attributes:
        name: For people.
        voxels: (channels, z, y, x), float32.
    """

    name: str
    voxels: Array


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
    import onnx

    check_replaceable(output)
    mirroring = options.mirroring if model.mirror_axes else "none"
    spec = model.spec(
        name=options.name or model.default_name, mirroring=mirroring, max_batch_size=options.max_batch_size
    )
    spec.check_runnable()
    _check_size(model, spec)
    if not cases and not options.accept_unproven:
        raise ParityError(
            f"{spec.name}: no real scan to prove the graph with: give scans by --cases (nnU-Net's preprocessed data "
            "was not found either), or --accept-unproven to write a model that is marked as unproven"
        )
    report(
        f"{spec.name}: {model.trainer} {model.configuration}, folds {', '.join(model.folds)}, mirroring: {mirroring}"
    )
    data = _parity_data(model, spec, cases, data_source)
    report(f"  parity data: {data.source}")

    def fill(folder: Path) -> None:
        graph = onnx_graph_of(model, spec, opset=options.opset)
        onnx.save(graph, folder / model_name("fp32"))
        check = _check_file(folder / model_name("fp32"), data, spec)
        report(summary([check]))
        require(check, model=spec.name, accept_unproven=options.accept_unproven, data=data)
        variants = [_variant(folder, "fp32", (check,))]
        if "fp16" in options.precisions:
            variants.append(_fp16_variant(folder, graph, data, spec, options, report))
        final = spec.model_copy(
            update={"parity": check.as_parity(detail="" if data.is_real else "no real scan was given")}
        )
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

    return write_bundle(output, fill)


# --- the graph ----------------------------------------------------------------------------------


def mirror_subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all subsets of the mirror axes, the empty one first.

    Source:
        nnU-Net's ``_internal_maybe_mirror_and_predict``.
    """
    return [subset for size in range(len(axes) + 1) for subset in combinations(sorted(axes), size)]


def served_module(model: LoadedModel, spec: ModelSpec) -> "torch.nn.Module":
    """Return the module that is exported: mean of the logits over folds, and over flips if the graph mirrors.

    The flips go through the network as one batch: eight copies of the graph would be eight times as large.
    """
    import torch

    subsets = mirror_subsets(spec.mirror_axes) if spec.mirroring == "graph" else [()]
    flips = [tuple(axis + 2 for axis in subset) for subset in subsets]

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = torch.nn.ModuleList(model.networks)

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            stacked = (
                torch.cat([torch.flip(patches, flip) if flip else patches for flip in flips])
                if len(flips) > 1
                else patches
            )
            first, *others = self.networks
            total = first(stacked)
            for network in others:
                total = total + network(stacked)
            if len(flips) > 1:
                parts = total.chunk(len(flips))
                total = parts[0]
                for part, flip in zip(parts[1:], flips[1:], strict=True):
                    total = total + torch.flip(part, flip)
            divisor = len(self.networks) * len(flips)
            logits: torch.Tensor = total / divisor if divisor > 1 else total
            return logits

    return Served().eval()


def onnx_graph_of(model: LoadedModel, spec: ModelSpec, *, opset: int = DEFAULT_OPSET) -> Any:
    """Export the network with torch's exporter, simplified, with a dynamic batch.

    Args:
        model: The trained model.
        spec: Its contract; names the tensors, and says whether the graph mirrors.
        opset: ONNX operator set, 17 or more.

    Returns:
        ``onnx.ModelProto`` that ONNX's checker accepts.

    Raises:
        SpecError: torch cannot export the network, or not with this operator set.
    """
    import onnx
    import onnxslim
    import torch

    if opset < DEFAULT_OPSET:
        raise SpecError(f"{spec.name}: opset {opset} has no LayerNormalization; take {DEFAULT_OPSET} or more")
    example = torch.zeros((2, len(spec.channels), *spec.patch_size))
    batch = torch.export.Dim("batch", min=1, max=1024)
    try:
        with warnings.catch_warnings():
            # of torch's own internals, while it exports; a wrong graph is what the parity gate is for
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.onnx.export(
                served_module(model, spec),
                (example,),
                input_names=[spec.input.name],
                output_names=[spec.output.name],
                dynamo=True,
                dynamic_shapes=({0: batch},),
                opset_version=max(opset, EXPORTER_OPSET),
                verbose=False,
            )
        graph = None if program is None else program.model_proto
        graph = onnxslim.slim(graph, size_threshold=_FOLDING_LIMIT_BYTES)
        if opset == DEFAULT_OPSET:
            graph = lower_to_opset_17(graph)
        onnx.checker.check_model(graph, full_check=True)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        torch.onnx.OnnxExporterError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise SpecError(f"{spec.name}: the network cannot be exported to ONNX opset {opset}: {error}") from error
    for value in graph.graph.input[0], graph.graph.output[0]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return graph


def _check_size(model: LoadedModel, spec: ModelSpec) -> None:
    """Refuse, before the minutes that an export takes, weights that one ONNX file cannot hold."""
    # a state dict names nnU-Net's weights several times, `parameters` each once
    weights = sum(item.numel() * item.element_size() for network in model.networks for item in network.parameters())
    if weights >= MAX_ONE_FILE_BYTES:
        raise SpecError(
            f"{spec.name}: the weights of {len(model.networks)} folds have {weights / 1e9:.2f} GB, one ONNX file holds "
            f"{MAX_ONE_FILE_BYTES / 1e9:.1f}: export fewer folds (-f), or a network with fewer features"
        )


# --- what PyTorch says --------------------------------------------------------------------------


def torch_network(model: LoadedModel, spec: ModelSpec) -> Network:
    """Return PyTorch's FP32 answer for patches: the mean over folds, and over flips if the graph shall mirror.

    Written apart from :func:`served_module`, so that a mistake there is found.
    """
    import torch

    mirrored = spec.mirror_axes if spec.mirroring == "graph" else ()
    choices = list(product((False, True), repeat=len(mirrored)))

    def run(patches: Array) -> Array:
        with torch.inference_mode():
            x = torch.from_numpy(np.array(patches))  # a copy: torch wants to own writable memory
            total = torch.zeros((len(x), spec.num_heads, *spec.patch_size))
            for network in model.networks:
                for chosen in choices:
                    axes = [axis + 2 for axis, is_flipped in zip(mirrored, chosen, strict=True) if is_flipped]
                    total += torch.flip(network(torch.flip(x, axes)), axes)
            logits: Array = (total / (len(model.networks) * len(choices))).numpy()
        return logits

    return run


def _parity_data(model: LoadedModel, spec: ModelSpec, cases: Sequence[PreparedCase], source: str) -> ParityData:
    network = torch_network(model, spec)
    channels = len(spec.channels)
    random = np.random.default_rng(0).standard_normal((2, channels, *spec.patch_size)).astype(np.float32)
    no_patches = np.empty((0, channels, *spec.patch_size), np.float32)
    if not cases:
        return ParityData(
            source="random patches only",
            patches=no_patches,
            patches_logits=np.empty((0, spec.num_heads, *spec.patch_size), np.float32),
            random=random,
            random_logits=network(random),
            case=np.empty((channels, 0, 0, 0), np.float32),
            case_logits=np.empty((spec.num_heads, 0, 0, 0), np.float32),
        )
    case, note = _cut_to_limit(cases[0], spec)
    case_logits = case_logits_of(case, network, spec)
    patches = [*_patches_with_most_foreground(case, case_logits, spec)]
    for other in cases[1:]:
        plan = plan_windows(_size(other.voxels), spec.patch_size, CASE_STEP)
        patches.append(cut_patches(other.voxels, plan, len(plan) // 2, 1)[0])
    stacked = np.stack(patches)
    names = ", ".join(item.name for item in cases)
    return ParityData(
        source=f"{source or 'scans'}: {names}{note}",
        patches=stacked,
        patches_logits=np.concatenate([network(stacked[i : i + 1]) for i in range(len(stacked))]),
        random=random,
        random_logits=network(random),
        case=case,
        case_logits=case_logits,
    )


def _cut_to_limit(case: PreparedCase, spec: ModelSpec) -> tuple[Array, str]:
    planes = case.voxels.shape[1]
    plane_bytes = 4 * spec.num_heads * case.voxels[0, 0].size
    most = max(int(MAX_CASE_LOGITS_BYTES // plane_bytes), (1, *spec.patch_size)[-3])
    if planes <= most:
        return np.ascontiguousarray(case.voxels), ""
    first = (planes - most) // 2
    return np.ascontiguousarray(case.voxels[:, first : first + most]), f" (the first cut to its middle {most} planes)"


def _patches_with_most_foreground(case: Array, logits: Array, spec: ModelSpec) -> list[Array]:
    """Cut the windows of the case in which the network finds most, where labels can differ."""
    plan = plan_windows(_size(case), spec.patch_size, CASE_STEP)
    found = cut_patches(_foreground(logits, spec)[None], plan, 0, len(plan)).reshape(len(plan), -1).sum(axis=1)
    best = np.argsort(-found, kind="stable")[:_PATCHES_FROM_CASE]
    return [cut_patches(case, plan, int(index), 1)[0] for index in sorted(best)]


def _foreground(logits: Array, spec: ModelSpec) -> Array:
    foreground = (logits > 0).any(axis=0) if spec.has_regions else np.argmax(logits, axis=0) > 0
    return np.asarray(foreground, dtype=np.float32)


def _size(voxels: Array) -> tuple[int, int, int]:
    return (voxels.shape[1], voxels.shape[2], voxels.shape[3])


# --- checks and variants ------------------------------------------------------------------------


def _check_file(path: Path, data: ParityData, spec: ModelSpec) -> Check:
    return check_network(
        onnxruntime_network(path),
        data,
        spec,
        what=f"{path.name} in {describe_runtime('onnxruntime')} on the CPU",
        precision="fp32",
        sha256=sha256_of(path),
    )


def _variant(folder: Path, precision: Precision, checks: tuple[Check, ...], **extra: Any) -> Variant:
    file = model_name(precision)
    return Variant(file=file, precision=precision, sha256=sha256_of(folder / file), checks=checks, **extra)


def _fp16_variant(
    folder: Path, graph: Any, data: ParityData, spec: ModelSpec, options: ExportOptions, report: Callable[[str], None]
) -> Variant:
    """Take the most aggressive rung of the ladder that passes."""
    import onnx

    from ctseg.deploy.precision import fp16_ladder

    output_dtype: Literal["FP32", "FP16"] = "FP16" if options.fp16_output else "FP32"
    path = folder / model_name("fp16")
    last: Variant | None = None
    for rung in fp16_ladder(
        graph, np.asarray(data.patches if len(data.patches) else data.random), output_dtype=output_dtype
    ):
        onnx.save(rung.mixed, path)
        with tempfile.TemporaryDirectory(prefix="ctseg-fp16-") as temporary:
            simulated = Path(temporary) / "simulated.onnx"
            onnx.save(rung.simulated, simulated)
            checks = (
                check_network(
                    onnxruntime_network(simulated),
                    data,
                    spec,
                    what=f"{path.name}, FP16 tensors rounded to FP16, in {describe_runtime('onnxruntime')} on the CPU",
                    precision="fp16",
                    sha256=sha256_of(path),
                ),
            )
        last = _variant(folder, "fp16", checks, kept_fp32=rung.kept_fp32, output_dtype=output_dtype)
        report(f"  fp16, kept in FP32: {rung.kept_fp32}")
        report(summary(checks))
        if last.proven:
            onnxruntime_network(path)(data.random[:1])  # the types of the real graph fit together
            return last
    if last is None:
        raise SetupError(f"{spec.name}: the precision ladder is empty")
    try:
        require(last.checks[0], model=spec.name, accept_unproven=options.accept_unproven, data=data)
    except ParityError as error:
        raise ParityError(f"{error}; without --precision fp16 the FP32 network is written, which passes") from error
    return last
