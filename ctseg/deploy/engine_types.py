"""Which float types a TensorRT engine really has, read back from its inspector and proven against what was asked for.

The inspector's words changed in TensorRT 11; what it leaves open, as it does for dynamic shapes, the parsed network
proves.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ctseg.errors import SpecError
from ctseg.model_spec import Precision

_FP16_NAMES = ("fp16", "half", "khalf", "float16")
_BF16_NAMES = ("bf16", "bfloat16", "kbf16")
_FP32_NAMES = ("fp32", "float", "kfloat", "float32")
FLOAT_TYPES = ("fp32", "fp16", "bf16")
_OTHER_TYPE = re.compile(r"\b(u?int\d+|bool|u?fp[48]\w*|int4|e\dm\d)\b", re.IGNORECASE)
_FP16_TACTIC = re.compile(r"(?<!b)f16f16|(?:^|_)(?:hmma|h884|h1688|h16816|fp16)", re.IGNORECASE)
_TYPE = re.compile("|".join(rf"\b{name}\b" for name in (*_BF16_NAMES, *_FP16_NAMES, *_FP32_NAMES)), re.IGNORECASE)


def types_of_engine(information: str) -> dict[str, int]:
    """Count the layers of an engine by the float types that its inspector names.

    A layer with FP16 and FP32 tensors counts in both. TensorRT 10 writes ``Format/Datatype`` in one
    field, 11 writes them in two; both are understood. Of an engine with dynamic shapes the inspector
    writes ``N/A due to dynamic shapes`` in place of a type, in some versions even with an execution
    context: such layers count as ``unknown``, which is evidence of nothing.

    Args:
        information: What ``EngineInspector.get_engine_information`` gives.

    Returns:
        ``layers``; by their tensors, ``fp32``, ``fp16``, ``bf16`` and ``unknown``; by their weights,
        ``weights_fp32`` and so on; ``tactics_fp16``, layers whose kernel has FP16 in its name. Only
        counts that are not 0, but for ``layers``.

    Raises:
        SpecError: It is not JSON, or has names only, for want of detailed profiling verbosity.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"the engine inspector's answer is not understood: {error}") from error
    counts: Counter[str] = Counter(layers=len(layers))
    for item in layers:
        if not isinstance(item, dict):
            raise SpecError("the engine was built without detailed profiling verbosity: its precision cannot be proven")
        described = [*item.get("Inputs", ()), *item.get("Outputs", ())]
        counts.update({kind for description in described for kind in _types_in(description) if kind != "other"})
        weights = {kind for name in ("Weights", "Bias") for kind in _types_in(item.get(name))}
        counts.update(f"weights_{kind}" for kind in weights & set(FLOAT_TYPES))
        if _FP16_TACTIC.search(str(item.get("TacticName", ""))):
            counts["tactics_fp16"] += 1
    return dict(counts)


def _types_in(description: Any) -> set[str]:
    """Return what a tensor's or a weight's description says: float types, ``other``, or else ``unknown``."""
    if not isinstance(description, dict):
        return set()
    texts = [str(value) for key, value in description.items() if re.search("type|format", key, re.IGNORECASE)]
    kinds = set()
    for text in texts:
        for found in _TYPE.findall(text):
            word = found.lower()
            kinds.add("bf16" if word in _BF16_NAMES else "fp16" if word in _FP16_NAMES else "fp32")
    if not kinds:
        kinds.add("other" if any(_OTHER_TYPE.search(text) for text in texts) else "unknown")
    return kinds


def require_precision(
    types: Mapping[str, int], precision: Precision, *, network_types: Mapping[str, int], source: str
) -> tuple[str, ...]:
    """Refuse an engine that has not the precision that it is said to have.

    In a strongly typed network nothing but the graph decides about types, so that the parsed network
    proves what the inspector leaves open; what the inspector does name must not contradict it.

    Args:
        types: Of the engine, see :func:`types_of_engine`.
        precision: What was asked for.
        network_types: Of the parsed network, see :class:`ctseg.deploy.tensorrt_plan.Plan`.
        source: For the message.

    Returns:
        What proves it, for people: which sources name the precision, and for how many layers.

    Raises:
        SpecError: A part of an FP32 engine is half-precision, no part of an FP16 engine is, or nothing names a type.
    """
    named = {
        "parsed network": {kind: network_types.get(kind, 0) for kind in FLOAT_TYPES},
        "engine's tensors": {kind: types.get(kind, 0) for kind in FLOAT_TYPES},
        "engine's weights": {kind: types.get(f"weights_{kind}", 0) for kind in FLOAT_TYPES},
    }
    proofs = []
    for what, counts in named.items():
        half = counts["fp16"] + counts["bf16"]
        if precision == "fp32" and half:
            raise SpecError(f"{source}: expected an FP32 engine, found {half} layers of half precision in the {what}")
        is_whole = what != "engine's tensors" or not types.get("unknown", 0)
        if is_whole and any(counts.values()) and not counts[precision]:
            raise SpecError(f"{source}: expected a {precision} engine, found no {precision} in the {what}: {counts}")
        if counts[precision]:
            proofs.append(f"{what}: {counts[precision]} layers")
    if not proofs:
        raise SpecError(f"{source}: expected a {precision} engine, but neither network nor inspector names a type")
    if precision == "fp16" and (tactics := types.get("tactics_fp16", 0)):
        proofs.append(f"names of kernels: {tactics} layers")
    if unknown := types.get("unknown", 0):
        proofs.append(f"(the inspector leaves the tensors of {unknown} layers open)")
    return tuple(proofs)
