"""The parity gate: what is served gives the labels that PyTorch gives, or it is not served.

A check compares logits with PyTorch's logits of the same patches and of one whole prepared case, of real scans,
of a phantom (where no patient's voxels may go), or of both. Labels decide on scans; on a phantom, which no network was
trained for, they decide where PyTorch is sure of them (decision 17).
It fails closed: a figure outside its limits, a value that is not finite, or a comparison that could
prove nothing (constant patches) is a problem, and one problem fails the check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ctseg.deploy.parity_data import Array, ParityData
from ctseg.deploy.parity_report import Check, Comparison, LabelFigures
from ctseg.deploy.runtimes import Network
from ctseg.errors import InferenceFailedError, ParityError
from ctseg.model_spec import ModelSpec, ParitySet, Precision
from ctseg.numerics.blend import SlabBlender
from ctseg.numerics.decide import labels_of_logits
from ctseg.numerics.dice import dice
from ctseg.numerics.votes import voted_heads
from ctseg.numerics.windows import cut_patches, plan_windows
from ctseg.stages import Stage, stage

ROUNDING_RELATIVE_L2 = 1e-5
"""Below this two float32 networks differ by rounding only, and labels differ only where logits tie."""
EXACT_SUMS = "with exact sums"
"""So a check, and the spec of what was built, name a network whose norms sum exactly."""

CASE_STEP = 1.0
"""Windows of the whole case touch but do not overlap: nothing averages an error away."""


@dataclass(frozen=True)
class Limits:
    """What a network of one precision may differ by.

    Attributes:
        relative_l2: Norm of the difference of all logits over the norm of the reference.
        label_difference_share: Share of voxels whose label differs.
        dice: Least Dice of a label whose reference has at least ``small_label`` voxels.
        small_label: Voxels from which on a label's Dice counts.
        small_differing: Most voxels by which a smaller label may differ; None: not looked at.
    """

    relative_l2: float
    label_difference_share: float
    dice: float
    small_label: int
    small_differing: int | None


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(1e-5, 1e-4, 0.9995, 4000, 2),
    "fp16": Limits(2e-2, 1e-3, 0.999, 1000, None),
    "bf16": Limits(5e-2, 1e-3, 0.999, 1000, None),
}
"""A float32 network differs from PyTorch by rounding alone (decision 21)."""
FAST_FP32 = Limits(1e-3, 1e-4, 0.9995, 4000, 2)
"""Of a float32 network with sums as fast as the runtime likes, or on a GPU: labels decide; the limit of the logits is
for scans on which a fault changes no label (decision 7)."""


def compare(
    what: str,
    reference: Array,
    found: Array,
    spec: ModelSpec | None,
    precision: Precision,
    parity_set: ParitySet = "scans",
    limits: Limits | None = None,
) -> Comparison:
    """Compare logits with PyTorch's.

    Args:
        what: Name of the data.
        reference: (n, heads, *spatial), of PyTorch.
        found: The same shape, of the network in question.
        spec: Says which labels the logits mean; None where labels mean nothing on this data.
        precision: Of the network.
        parity_set: Where the data comes from; of a phantom those voxels' labels count that PyTorch decides clearly,
            by more than the limit on the logits allows them to be off.
        limits: Which hold; None: those of the precision.
    """
    limits = limits or LIMITS[precision]
    if reference.shape != found.shape:
        return _failed(what, parity_set, f"expected logits of shape {reference.shape}, found {found.shape}")
    problems = []
    if not np.isfinite(found).all():
        share = 1 - np.isfinite(found).mean()
        return _failed(what, parity_set, f"{share:.3%} of the logits are NaN or infinite (an overflow of {precision}?)")
    if min((float(np.ptp(item)) for item in reference), default=0.0) == 0:
        problems.append("the reference is constant: this data proves nothing")
    difference = found.astype(np.float64) - reference
    norm = float(np.linalg.norm(reference.astype(np.float64).ravel()))
    relative_l2 = float(np.linalg.norm(difference.ravel())) / norm if norm else np.inf
    if relative_l2 > limits.relative_l2:
        problems.append(f"relative L2 error {relative_l2:.2e}, at most {limits.relative_l2:.0e} is allowed")
    share = 0.0
    labels: dict[str, LabelFigures] = {}
    label_problems: list[str] = []
    if spec is not None:
        least_lead = 0.0
        if parity_set == "phantom":
            least_lead = limits.relative_l2 * norm / np.sqrt(reference.size)
        share, labels, label_problems = _compare_labels(reference, found, spec, limits, least_lead=least_lead)
    if precision != "fp32" or relative_l2 > ROUNDING_RELATIVE_L2:
        problems += label_problems
    return Comparison(
        what=what,
        relative_l2=relative_l2,
        max_abs_error=float(np.abs(difference).max()),
        label_difference_share=share,
        labels=labels,
        problems=tuple(problems),
        parity_set=parity_set,
    )


def _failed(what: str, parity_set: ParitySet, problem: str) -> Comparison:
    return Comparison(
        what=what,
        parity_set=parity_set,
        relative_l2=np.inf,
        max_abs_error=np.inf,
        label_difference_share=1.0,
        labels={},
        problems=(problem,),
    )


def _compare_labels(
    reference: Array, found: Array, spec: ModelSpec, limits: Limits, *, least_lead: float
) -> tuple[float, dict[str, LabelFigures], list[str]]:
    """Compare the labels of voxels that the reference decides by a lead of ``least_lead`` or more."""
    pairs = [(labels_of_logits(a, spec), labels_of_logits(b, spec)) for a, b in zip(reference, found, strict=True)]
    expected, got = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    if least_lead:
        is_clear = np.concatenate([lead_of(item, spec).ravel() for item in reference]) >= least_lead
        expected, got = expected[is_clear], got[is_clear]
    share = float((expected != got).sum()) / max(1, len(expected))
    problems = []
    if share > limits.label_difference_share:
        problems.append(
            f"{share:.4%} of the voxels have another label, at most {limits.label_difference_share:.2%} may"
        )
    figures = {}
    for name, values in {"background": (0,), **spec.named_values}.items():
        a, b = np.isin(expected, values), np.isin(got, values)
        voxels, differing = int(a.sum()), int((a != b).sum())
        agreement = dice(a, b) if voxels or differing else 1.0  # two empty masks agree
        figures[name] = LabelFigures(voxels=voxels, differing=differing, dice=agreement)
        if problem := dice_problem(name, voxels, differing, agreement, limits):
            problems.append(problem)
    return share, figures, problems


def dice_problem(name: str, voxels: int, differing: int, agreement: float, limits: Limits) -> str | None:
    """Return what is wrong with a label, None where it is within its limits.

    Args:
        name: Of the label.
        voxels: How many the reference has.
        differing: How many differ.
        agreement: Dice of both.
        limits: Which hold.
    """
    if agreement >= limits.dice:
        return None
    if voxels >= limits.small_label:
        return f"{name}: Dice {agreement:.5f} over {voxels} voxels, at least {limits.dice} is needed"
    if limits.small_differing is not None and differing > limits.small_differing:
        return f"{name}: {differing} of {voxels} voxels differ, at most {limits.small_differing} may"
    return None


def lead_of(logits: Array, spec: ModelSpec) -> Array:
    """Return by how much each voxel is decided: the highest logit over the next, or the nearest region's from 0."""
    lead: Array = np.abs(logits).min(axis=0) if spec.has_regions else np.ptp(np.sort(logits, axis=0)[-2:], axis=0)
    return lead


def check_network(
    network: Network,
    parity_data: Sequence[ParityData],
    spec: ModelSpec,
    *,
    what: str,
    precision: Precision,
    sha256: str = "",
    limits: Limits | None = None,
) -> Check:
    """Compare a network with PyTorch on all parity data.

    Batches of one and of several are both run.

    Args:
        network: What is to be proven; it must do the mirroring that the reference has, and give votes behind the logits
            where the spec has them (:mod:`ctseg.numerics.votes`).
        parity_data: Patches and case with PyTorch's logits, of scans, of a phantom, or of both.
        spec: The contract.
        what: What runs, for people.
        precision: Of the network.
        sha256: Of the model file.
        limits: Which hold; None: those of the precision.
    """
    comparisons = [item for data in parity_data for item in _compare_all(network, data, spec, precision, limits)]
    return Check(network=what, precision=precision, sha256=sha256, comparisons=tuple(comparisons))


def _compare_all(
    network: Network, data: ParityData, spec: ModelSpec, precision: Precision, limits: Limits | None
) -> list[Comparison]:
    comparisons = []
    set_name = {"scans": "scans", "phantom": "the phantom"}[data.parity_set]
    heads = spec.num_heads
    for name, patches, logits, votes, leads in (
        ("patches", data.patches, data.patches_logits, data.patches_votes, data.patches_leads),
        ("random patches", data.random, data.random_logits, data.random_votes, data.random_leads),
    ):
        if len(patches):
            with stage(f"comparing {name} of {set_name}", len(patches), unit="patches") as compared:
                found = _in_batches(network, np.asarray(patches), spec.max_batch_size, compared)
            with_labels = spec if name == "patches" else None
            comparison = compare(
                name, np.asarray(logits), found[:, :heads], with_labels, precision, data.parity_set, limits
            )
            if spec.votes is not None:
                least_lead = (limits or LIMITS[precision]).relative_l2 * float(np.sqrt(np.mean(np.square(logits))))
                problem = _votes_problem(votes, leads, found[:, heads:], spec, limits or LIMITS[precision], least_lead)
                comparison = comparison.model_copy(update={"problems": (*comparison.problems, *problem)})
            comparisons.append(comparison)
    broken = any(not np.isfinite(item.relative_l2) for item in comparisons)
    if data.case.size and not broken:  # a network that overflows on patches need not run for minutes
        try:
            found = case_logits_of(
                np.asarray(data.case),
                lambda patches: network(patches)[:, :heads],
                spec,
                batch=spec.max_batch_size,
                what=f"comparing {set_name}, whole",
            )
        except InferenceFailedError as error:
            comparisons.append(_failed("case", data.parity_set, str(error)))
        else:
            logits = np.asarray(data.case_logits)[None]
            comparisons.append(compare("case", logits, found[None], spec, precision, data.parity_set, limits))
    return comparisons


def _votes_problem(
    votes: npt.NDArray[np.uint8] | None,
    leads: Array | None,
    found: Array,
    spec: ModelSpec,
    limits: Limits,
    least_lead: float,
) -> tuple[str, ...]:
    """Compare votes with PyTorch's where every fold is sure of the voxel: near a tie rounding decides.

    Args:
        votes: (n, heads, *patch_size), of PyTorch.
        leads: (n, *patch_size).
        found: (n, voted heads, *patch_size): shares of folds.
        spec: The contract.
        limits: Which hold.
        least_lead: From which on a fold is sure, in the unit of the logits.
    """
    if votes is None or leads is None or spec.votes is None:
        return ("there are no votes of PyTorch to compare with: export the model again",)
    expected = np.asarray(votes)[:, voted_heads(spec).start :]
    if found.shape != expected.shape:
        return (f"expected votes for {expected.shape[1]} heads, found {found.shape[1]}",)
    is_clear = np.asarray(leads) >= least_lead
    differs = (np.rint(found * spec.votes.folds) != expected).any(axis=1)
    share = float(differs[is_clear].mean()) if is_clear.any() else 0.0
    if share <= limits.label_difference_share:
        return ()
    return (
        f"the folds vote otherwise in {share:.4%} of the voxels that all of them are sure of, at most "
        f"{limits.label_difference_share:.2%} may differ",
    )


def _in_batches(network: Network, patches: Array, limit: int, compared: Stage) -> Array:
    """Run one patch alone and the others together, as far as the batch limit allows."""
    cuts = [0, *range(1, len(patches), max(1, limit)), len(patches)]
    parts = []
    for a, b in pairwise(cuts):
        if b > a:
            parts.append(np.asarray(network(np.ascontiguousarray(patches[a:b])), dtype=np.float32))
            compared.advance(b - a)
    return np.concatenate(parts)


def require(check: Check, *, model: str, accept_unproven: bool) -> None:
    """Let a check pass, or refuse.

    Args:
        check: What was found.
        model: Name of the model.
        accept_unproven: Let it pass all the same.

    Raises:
        ParityError: The check failed, or the data could prove nothing.
    """
    if accept_unproven:
        return
    if check.passed and not check.proves:
        raise ParityError(
            f"{model}: no real scan to prove {check.network} with: give real scans, or accept a model that is "
            "marked as unproven",
            settings=("cases", "accept_unproven"),
        )
    if not check.passed:
        raise ParityError(
            f"{model}: {check.network} does not give PyTorch's labels: {'; '.join(check.problems)}; it can be accepted "
            "all the same, marked as unproven",
            settings=("accept_unproven",),
        )


def case_logits_of(
    case: Array, network: Network, spec: ModelSpec, *, batch: int = 1, what: str = "a whole case"
) -> Array:
    """Run a network over a prepared case, with windows that do not overlap.

    Args:
        case: (channels, z, y, x), float32.
        network: The network.
        spec: Its contract.
        batch: Patches in one call.
        what: Name of the stage, for people.

    Returns:
        (heads, z, y, x), float32.

    Raises:
        InferenceFailedError: A logit is NaN or infinite.
    """
    size = (case.shape[1], case.shape[2], case.shape[3])
    plan = plan_windows(size, spec.patch_size, CASE_STEP)
    blender = SlabBlender(plan, spec.num_heads, model=spec.name)
    logits = np.empty((spec.num_heads, *size), dtype=np.float32)
    plane = 0
    with stage(what, len(plan), unit="windows") as run:
        for first in range(0, len(plan), batch):
            patches = cut_patches(case, plan, first, min(batch, len(plan) - first))
            for slab in blender.add(np.asarray(network(patches), dtype=np.float32)):
                logits[:, plane : plane + slab.shape[1]] = slab
                plane += slab.shape[1]
            run.advance(len(patches))
    return logits
