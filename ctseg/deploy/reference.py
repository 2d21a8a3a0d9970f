"""What PyTorch says: the logits that every other runtime has to give."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from ctseg.deploy.parity import CASE_STEP, case_logits_of
from ctseg.deploy.parity_data import Array, ParityData, PreparedCase
from ctseg.deploy.runtimes import Network
from ctseg.deploy.trained_model import LoadedModel
from ctseg.model_spec import ModelSpec
from ctseg.numerics.decide import labels_of_logits
from ctseg.numerics.windows import cut_patches, plan_windows

MAX_CASE_LOGITS_BYTES = 2 << 30
"""Above this the parity case is cut to its middle planes."""
_PATCHES_FROM_CASE = 3


def torch_network(model: LoadedModel, spec: ModelSpec) -> Network:
    """Return PyTorch's FP32 answer for patches: the mean over folds, and over flips if the graph shall mirror.

    Written apart from :func:`ctseg.deploy.onnx_graph.served_module`, so that a mistake there is found.
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


def parity_data_of(model: LoadedModel, spec: ModelSpec, cases: Sequence[PreparedCase], source: str) -> ParityData:
    """Choose patches and a case, and run PyTorch on them.

    Args:
        model: The trained model.
        spec: Its contract.
        cases: Real scans; the first is run whole, of the others one patch each. Without any there are only random
            patches, which prove nothing.
        source: Where they come from, for people.
    """
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
    return np.asarray(labels_of_logits(logits, spec) != 0, dtype=np.float32)


def _size(voxels: Array) -> tuple[int, int, int]:
    return (voxels.shape[1], voxels.shape[2], voxels.shape[3])
