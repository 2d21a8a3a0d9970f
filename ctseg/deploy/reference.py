"""What PyTorch says: the logits that every other runtime has to give.

Those of patches of real scans are computed in float64, whose rounding no float32 sees; those of whole cases, of the
phantom and of noise in float32, which is within 3e-6 of it (decision 21).
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.deploy.float64 import in_float64
from ctseg.deploy.parity import CASE_STEP, case_logits_of, lead_of
from ctseg.deploy.parity_data import Array, ParityData, PreparedCase
from ctseg.deploy.phantom import PHANTOM_SOURCE, phantom_case
from ctseg.deploy.runtimes import Network
from ctseg.deploy.trained_model import LoadedModel
from ctseg.model_spec import ModelSpec, ParitySet
from ctseg.numerics.decide import REGION_THRESHOLD, labels_of_logits
from ctseg.numerics.windows import cut_patches, plan_windows
from ctseg.stages import stage

_log = logging.getLogger(__name__)
MAX_CASE_LOGITS_BYTES = 2 << 30
"""Above this the parity case is cut to its middle planes."""
_PATCHES_FROM_CASE = 3
"""Those with most foreground, and the one with least contrast, where rounding shows most."""
_SETS: dict[ParitySet, str] = {"scans": "a whole scan", "phantom": "the phantom"}


def torch_network(model: LoadedModel, spec: ModelSpec, *, float64: bool = False) -> Network:
    """Return PyTorch's answer for patches: the mean over folds, and over flips if the graph shall mirror.

    Written apart from :func:`ctseg.deploy.onnx_graph.served_module`, so that a mistake there is found.

    Args:
        model: The trained model.
        spec: Its contract.
        float64: Compute in float64, five to ten times as long; the logits are rounded to float32 at the end.
    """
    import torch

    mirrored = spec.mirror_axes if spec.mirroring == "graph" else ()
    choices = list(product((False, True), repeat=len(mirrored)))
    kind = torch.float64 if float64 else torch.float32

    def mean_logits(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((len(x), spec.num_heads, *spec.patch_size), dtype=kind)
        for network in model.networks:
            for chosen in choices:
                axes = [axis + 2 for axis, is_flipped in zip(mirrored, chosen, strict=True) if is_flipped]
                total += torch.flip(network(torch.flip(x, axes)), axes)
        return total / (len(model.networks) * len(choices))

    def run(patches: Array) -> Array:
        with in_float64(model.networks) if float64 else nullcontext(), torch.inference_mode():
            x = torch.from_numpy(np.array(patches)).to(kind)  # a copy: torch wants to own writable memory
            logits: Array = mean_logits(x).to(torch.float32).numpy()
        return logits

    return run


Voting = Callable[[Array], tuple[npt.NDArray[np.uint8], Array]]
"""Says of patches how folds vote, and by how much the least sure of them decides each voxel."""


def torch_votes(model: LoadedModel, spec: ModelSpec) -> Voting:
    """Return what counts PyTorch's votes of patches.

    Written apart from :func:`ctseg.deploy.onnx_graph.served_module`, so that a mistake there is found.

    Args:
        model: The trained model.
        spec: Its contract, which says whether a fold's logits are averaged over flips.

    Returns:
        A function of patches: for each head how many folds give it the voxel, (n, heads, *patch_size), and each voxel's
        lead in the fold that is least sure, (n, *patch_size), in the unit of the logits.
    """
    networks = [
        torch_network(replace(model, networks=(network,)), spec.model_copy(update={"votes": None}))
        for network in model.networks
    ]

    def count(patches: Array) -> tuple[npt.NDArray[np.uint8], Array]:
        votes = np.zeros((len(patches), spec.num_heads, *spec.patch_size), np.uint8)
        leads = np.full((len(patches), *spec.patch_size), np.inf, np.float32)
        for network in networks:
            logits = np.asarray(network(patches))
            for item, of_item, lead in zip(logits, votes, leads, strict=True):
                if spec.has_regions:
                    of_item += item > REGION_THRESHOLD
                else:
                    winner = item.argmax(axis=0)
                    for head in range(spec.num_heads):
                        of_item[head] += winner == head
                np.minimum(lead, lead_of(item, spec), out=lead)
        return votes, leads

    return count


def parity_data_of(
    model: LoadedModel, spec: ModelSpec, cases: Sequence[PreparedCase], source: str
) -> tuple[ParityData, ParityData]:
    """Choose patches and a case, and run PyTorch on them: of real scans, and of the phantom.

    Args:
        model: The trained model.
        spec: Its contract.
        cases: Real scans; the first is run whole, of the others one patch each. Without any there are only random
            patches in their place, which prove nothing.
        source: Where they come from, for people.
    """
    network = torch_network(model, spec)

    def exactly(patches: Array) -> Array:
        try:
            return _logits_one_by_one(
                patches, torch_network(model, spec, float64=True), spec, what="PyTorch in float64 on patches of scans"
            )
        except (RuntimeError, TypeError) as error:  # a layer of somebody's own that makes float32 numbers itself
            _log.warning("%s: PyTorch's float32 is the reference, for float64 failed: %s", spec.name, error)
            return _logits_one_by_one(patches, network, spec, what="PyTorch on patches of scans")

    voting = torch_votes(model, spec) if spec.votes else None
    random = np.random.default_rng(0).standard_normal((2, spec.num_input_channels, *spec.patch_size)).astype(np.float32)
    phantom = _compared("phantom", PHANTOM_SOURCE, [phantom_case(spec)], random, network, spec, voting=voting)
    if not cases:
        return _compared("scans", "random patches only", (), random, network, spec, voting=voting), phantom
    count = f"{len(cases)} case{'s' if len(cases) > 1 else ''}"  # no names: they may be patients'
    return _compared(
        "scans", f"{source or 'scans'}: {count}", cases, random[:0], network, spec, exactly, voting
    ), phantom


def _compared(
    parity_set: ParitySet,
    source: str,
    cases: Sequence[PreparedCase],
    random: Array,
    network: Network,
    spec: ModelSpec,
    exactly: Callable[[Array], Array] | None = None,
    voting: Voting | None = None,
) -> ParityData:
    case, note = np.empty((spec.num_input_channels, 0, 0, 0), np.float32), ""
    case_logits = np.empty((spec.num_heads, 0, 0, 0), np.float32)
    patches: list[Array] = []
    if cases:
        case, note = _cut_to_limit(cases[0], spec)
        case_logits = case_logits_of(case, network, spec, what=f"PyTorch on {_SETS[parity_set]}")
        patches = _telling_patches(case, case_logits, spec)
    for other in cases[1:]:
        plan = plan_windows(_size(other.voxels), spec.patch_size, CASE_STEP)
        patches.append(cut_patches(other.voxels, plan, len(plan) // 2, 1)[0])
    stacked = np.stack(patches) if patches else random[:0]
    what = f"PyTorch on patches of {_SETS[parity_set]}"
    return ParityData(
        parity_set=parity_set,
        source=f"{source}{note}",
        patches=stacked,
        patches_logits=_logits_one_by_one(stacked, network, spec, what=what) if exactly is None else exactly(stacked),
        random=random,
        random_logits=_logits_one_by_one(random, network, spec, what="PyTorch on random patches"),
        case=case,
        case_logits=case_logits,
        **({} if voting is None else {**_votes("patches", stacked, voting), **_votes("random", random, voting)}),
        names=tuple(item.name for item in cases) if parity_set == "scans" else (),
    )


def _votes(name: str, patches: Array, voting: Voting) -> dict[str, npt.NDArray[Any]]:
    """Return votes and leads of patches, by the names that they have in parity data; nothing where there are none."""
    found = []
    with stage(f"PyTorch's folds, one by one, on {name}", len(patches), unit="patches") as run:
        for i in range(len(patches)):
            found.append(voting(patches[i : i + 1]))
            run.advance()
    if not found:
        return {}
    votes, leads = zip(*found, strict=True)
    return {f"{name}_votes": np.concatenate(votes), f"{name}_leads": np.concatenate(leads)}


def _logits_one_by_one(patches: Array, network: Network, spec: ModelSpec, *, what: str) -> Array:
    logits = [np.empty((0, spec.num_heads, *spec.patch_size), np.float32)]
    with stage(what, len(patches), unit="patches") as run:
        for i in range(len(patches)):
            logits.append(network(patches[i : i + 1]))
            run.advance()
    return np.concatenate(logits)


def _cut_to_limit(case: PreparedCase, spec: ModelSpec) -> tuple[Array, str]:
    planes = case.voxels.shape[1]
    plane_bytes = 4 * spec.num_heads * case.voxels[0, 0].size
    most = max(int(MAX_CASE_LOGITS_BYTES // plane_bytes), (1, *spec.patch_size)[-3])
    if planes <= most:
        return np.ascontiguousarray(case.voxels), ""
    first = (planes - most) // 2
    return np.ascontiguousarray(case.voxels[:, first : first + most]), f" (the first cut to its middle {most} planes)"


def _telling_patches(case: Array, logits: Array, spec: ModelSpec) -> list[Array]:
    """Cut the windows of a case in which the network finds most, where labels can differ, and one with least contrast.

    The latter is not constant where another is not: air, mostly, whose sums round most.
    """
    plan = plan_windows(_size(case), spec.patch_size, CASE_STEP)
    found = cut_patches(_foreground(logits, spec)[None], plan, 0, len(plan)).reshape(len(plan), -1).sum(axis=1)
    contrast = np.array([np.std(cut_patches(case, plan, index, 1)[0, 0]) for index in range(len(plan))])
    flattest = int(np.argmin(np.where(contrast > 0, contrast, np.inf)))
    others = [int(index) for index in np.argsort(-found, kind="stable") if index != flattest]
    best = sorted({flattest, *others[: _PATCHES_FROM_CASE - 1]})
    return [cut_patches(case, plan, index, 1)[0] for index in best]


def _foreground(logits: Array, spec: ModelSpec) -> Array:
    return np.asarray(labels_of_logits(logits, spec) != 0, dtype=np.float32)


def _size(voxels: Array) -> tuple[int, int, int]:
    return (voxels.shape[1], voxels.shape[2], voxels.shape[3])
