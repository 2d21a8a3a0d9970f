"""The parity gate: what is served gives the labels that PyTorch gives, or it is not served.

A check compares logits with PyTorch's FP32 logits of the same patches and of one whole prepared case.
It fails closed: a figure outside its limits, a value that is not finite, or a comparison that could
prove nothing (constant patches) is a problem, and one problem fails the check.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from ctseg.errors import InferenceFailedError, ParityError, SpecError
from ctseg.model_spec import ModelSpec, Parity, Precision
from ctseg.numerics.blend import SlabBlender
from ctseg.numerics.windows import cut_patches, plan_windows

Array = npt.NDArray[np.float32]
Network = Callable[[Array], Array]
"""A batch of patches in, logits out: (batch, channels, *patch) to (batch, heads, *patch), float32."""

ROUNDING_RELATIVE_L2 = 1e-5
"""Below this two float32 networks differ by rounding only, and labels differ only where logits tie."""

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


# labels decide; the logits' own limit is for scans on which a fault changes no label (decision 7)
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(1e-3, 1e-4, 0.9995, 4000, 2),
    "fp16": Limits(2e-2, 1e-3, 0.999, 1000, None),
    "bf16": Limits(5e-2, 1e-3, 0.999, 1000, None),
}


class _Strict(BaseModel):
    # figures may be infinite or NaN: that is what a failed check reports
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class LabelFigures(_Strict):
    """Agreement about one label or region."""

    voxels: int
    """Of the reference."""
    differing: int
    dice: float
    """1 where both are empty."""


class Comparison(_Strict):
    """Two sets of logits, compared."""

    what: str
    """``patches``, ``random patches`` or ``case``."""
    relative_l2: float
    max_abs_error: float
    label_difference_share: float
    labels: dict[str, LabelFigures]
    problems: tuple[str, ...]
    """Why this fails; empty when it does not."""


class Check(_Strict):
    """One network, compared with PyTorch on all parity data."""

    network: str
    """What was run, and by what."""
    precision: Precision
    sha256: str
    """Of the model file; empty where there is none."""
    comparisons: tuple[Comparison, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the check fails, over all comparisons; empty when it passes."""
        return tuple(f"{item.what}: {problem}" for item in self.comparisons for problem in item.problems)

    @property
    def passed(self) -> bool:
        """Whether there was something to compare, and nothing was wrong."""
        return bool(self.comparisons) and not self.problems

    @property
    def proves(self) -> bool:
        """Whether it passed on what proves something: real patches and a whole case."""
        return self.passed and {"patches", "case"} <= {item.what for item in self.comparisons}

    def as_parity(self, *, detail: str = "") -> Parity:
        """Return the short form that travels in the spec."""
        worst = [item for item in self.comparisons if item.labels] or list(self.comparisons)
        dices = [figures.dice for item in worst for figures in item.labels.values() if figures.voxels]
        return Parity(
            state="proven" if self.proves else "unproven",
            relative_l2=_finite(max((item.relative_l2 for item in worst), default=None)),
            max_abs_error=_finite(max((item.max_abs_error for item in worst), default=None)),
            label_difference_share=_finite(max((item.label_difference_share for item in worst), default=None)),
            min_dice=_finite(min(dices, default=None)),
            detail=detail or "; ".join(self.problems)[:500],
        )


class Variant(_Strict):
    """A model file of the bundle and what was found about it."""

    file: str
    precision: Precision
    output_dtype: Literal["FP32", "FP16"] = "FP32"
    sha256: str
    kept_fp32: str = ""
    """Which rung of the precision ladder this is: what stayed in FP32."""
    checks: tuple[Check, ...]

    @property
    def proven(self) -> bool:
        """Whether there are checks and all of them prove it."""
        return bool(self.checks) and all(check.proves for check in self.checks)


class ParityReport(_Strict):
    """``parity.json`` of a bundle, or of a version in a model repository."""

    schema_version: Literal[1] = 1
    model: str
    network_sha256: str
    data: str
    """Where the parity data comes from."""
    created: str
    variants: tuple[Variant, ...]

    @classmethod
    def read(cls, path: Path) -> "ParityReport":
        """Read ``parity.json``.

        Raises:
            SpecError: It is missing, unreadable or of another schema.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror}): export the model again") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise SpecError(
                f"{path}: not a parity report of this ctseg: {where}: {first['msg']}: export the model again"
            ) from error

    def to_json(self) -> str:
        """Return the text of ``parity.json``."""
        return self.model_dump_json(indent=2) + "\n"

    def to_markdown(self) -> str:
        """Return a page that a person can read."""
        lines = [
            f"# Parity of {self.model}",
            "",
            f"Compared with PyTorch FP32 on {self.data}. Written {self.created}; network {self.network_sha256[:12]}.",
        ]
        for variant in self.variants:
            state = "**proven**" if variant.proven else "**UNPROVEN**"
            kept = f"; kept in FP32: {variant.kept_fp32}" if variant.kept_fp32 else ""
            lines += ["", f"## {variant.file}: {variant.precision}, {state}", "", f"sha256 {variant.sha256[:12]}{kept}"]
            for check in variant.checks:
                lines += ["", f"### {check.network}", ""]
                lines += ["| data | relative L2 | largest error | labels differ | label | voxels | differing | Dice |"]
                lines += ["|---|---|---|---|---|---|---|---|"]
                for item in check.comparisons:
                    head = (
                        f"| {item.what} | {item.relative_l2:.2e} | {item.max_abs_error:.2e} "
                        f"| {item.label_difference_share:.4%} "
                    )
                    rows = [f"| {n} | {f.voxels} | {f.differing} | {f.dice:.6f} |" for n, f in item.labels.items()]
                    rows = rows or ["| – | – | – | – |"]
                    lines += [head + rows[0], *(f"| | | | {row}" for row in rows[1:])]
                lines += ["", *([f"- {problem}" for problem in check.problems] or ["No problem found."])]
        return "\n".join(lines) + "\n"


_ARRAYS = ("patches", "patches_logits", "random", "random_logits", "case", "case_logits")


@dataclass(frozen=True, eq=False)
class ParityData:
    """Patches and one prepared case, with PyTorch's FP32 logits of the network as it is served.

    Attributes:
        source: Where the voxels come from, for people.
        patches: (n, channels, *patch_size), float32, cut from real scans.
        patches_logits: (n, heads, *patch_size), float32.
        random: (m, channels, *patch_size), float32, a supplement; labels on them mean nothing.
        random_logits: (m, heads, *patch_size), float32.
        case: (channels, z, y, x), float32, a whole prepared scan; empty when there is none.
        case_logits: (heads, z, y, x), float32.
    """

    source: str
    patches: Array
    patches_logits: Array
    random: Array
    random_logits: Array
    case: Array
    case_logits: Array

    @property
    def is_real(self) -> bool:
        """Whether real patches and a case are there, without which nothing is proven."""
        return len(self.patches) > 0 and self.case.size > 0

    def write(self, folder: Path) -> None:
        """Write ``*.npy`` files and a note that these are patient data."""
        folder.mkdir()
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        (folder / "README.txt").write_text(
            f"Source: {self.source}\n\n"
            "PATIENT DATA unless the source is public: patches and one whole scan as the network sees them, and\n"
            "PyTorch's FP32 logits of them. `ctseg build` compares what it builds with these. To put other scans in\n"
            "their place, export again with --cases.\n",
            encoding="utf-8",
        )

    @classmethod
    def read(cls, folder: Path, *, source: str) -> "ParityData":
        """Read what :meth:`write` wrote; arrays are mapped, not loaded.

        Raises:
            SpecError: A file is missing or broken.
        """
        try:
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        except (OSError, ValueError) as error:
            raise SpecError(f"{folder}: parity data cannot be read: {error}: export the model again") from error
        return cls(source=source, **arrays)


def case_logits_of(case: Array, network: Network, spec: ModelSpec, *, batch: int = 1) -> Array:
    """Run a network over a prepared case, with windows that do not overlap.

    Args:
        case: (channels, z, y, x), float32.
        network: The network.
        spec: Its contract.
        batch: Patches in one call.

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
    for first in range(0, len(plan), batch):
        patches = cut_patches(case, plan, first, min(batch, len(plan) - first))
        for slab in blender.add(np.asarray(network(patches), dtype=np.float32)):
            logits[:, plane : plane + slab.shape[1]] = slab
            plane += slab.shape[1]
    return logits


def labels_of(logits: Array, spec: ModelSpec) -> npt.NDArray[np.uint16]:
    """Turn logits into the values of the label map, as nnU-Net does.

    Args:
        logits: (heads, *spatial).
        spec: The contract.

    Returns:
        (*spatial), uint16.
    """
    if spec.regions_class_order is None:
        winners: npt.NDArray[np.uint16] = np.argmax(logits, axis=0).astype(np.uint16)
        return winners
    labels = np.zeros(logits.shape[1:], dtype=np.uint16)
    for head, value in zip(logits, spec.regions_class_order, strict=True):
        labels[head > 0] = value  # a probability above one half
    return labels


def compare(
    what: str, reference: Array, found: Array, spec: ModelSpec, precision: Precision, *, with_labels: bool = True
) -> Comparison:
    """Compare logits with PyTorch's.

    Args:
        what: Name of the data.
        reference: (n, heads, *spatial), PyTorch FP32.
        found: The same shape, of the network in question.
        spec: The contract.
        precision: Which limits hold.
        with_labels: Whether labels mean anything on this data.
    """
    limits = LIMITS[precision]
    if reference.shape != found.shape:
        return _failed(what, f"expected logits of shape {reference.shape}, found {found.shape}")
    problems = []
    if not np.isfinite(found).all():
        share = 1 - np.isfinite(found).mean()
        return _failed(what, f"{share:.3%} of the logits are NaN or infinite (an overflow of {precision}?)")
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
    if with_labels:
        share, labels, label_problems = _compare_labels(reference, found, spec, limits)
    if precision != "fp32" or relative_l2 > ROUNDING_RELATIVE_L2:
        problems += label_problems
    return Comparison(
        what=what,
        relative_l2=relative_l2,
        max_abs_error=float(np.abs(difference).max()),
        label_difference_share=share,
        labels=labels,
        problems=tuple(problems),
    )


def _failed(what: str, problem: str) -> Comparison:
    return Comparison(
        what=what,
        relative_l2=np.inf,
        max_abs_error=np.inf,
        label_difference_share=1.0,
        labels={},
        problems=(problem,),
    )


def _compare_labels(
    reference: Array, found: Array, spec: ModelSpec, limits: Limits
) -> tuple[float, dict[str, LabelFigures], list[str]]:
    pairs = [(labels_of(a, spec), labels_of(b, spec)) for a, b in zip(reference, found, strict=True)]
    expected, got = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    share = float((expected != got).mean())
    problems = []
    if share > limits.label_difference_share:
        problems.append(
            f"{share:.4%} of the voxels have another label, at most {limits.label_difference_share:.2%} may"
        )
    figures = {}
    for name, values in {"background": (0,), **spec.named_values}.items():
        a, b = np.isin(expected, values), np.isin(got, values)
        voxels, differing, total = int(a.sum()), int((a != b).sum()), int(a.sum() + b.sum())
        dice = 2 * int((a & b).sum()) / total if total else 1.0
        figures[name] = LabelFigures(voxels=voxels, differing=differing, dice=dice)
        if voxels >= limits.small_label:
            if dice < limits.dice:
                problems.append(f"{name}: Dice {dice:.5f} over {voxels} voxels, at least {limits.dice} is needed")
        elif limits.small_differing is not None and differing > limits.small_differing and dice < limits.dice:
            problems.append(f"{name}: {differing} of {voxels} voxels differ, at most {limits.small_differing} may")
    return share, figures, problems


def check_network(
    network: Network, data: ParityData, spec: ModelSpec, *, what: str, precision: Precision, sha256: str = ""
) -> Check:
    """Compare a network with PyTorch on all parity data.

    Batches of one and of several are both run.

    Args:
        network: What is to be proven; it must do the mirroring that the reference has.
        data: Patches and case with PyTorch's logits.
        spec: The contract.
        what: What runs, for people.
        precision: Which limits hold.
        sha256: Of the model file.
    """
    comparisons = []
    for name, patches, logits in (
        ("patches", data.patches, data.patches_logits),
        ("random patches", data.random, data.random_logits),
    ):
        if len(patches):
            found = _in_batches(network, np.asarray(patches), spec.max_batch_size)
            comparisons.append(compare(name, np.asarray(logits), found, spec, precision, with_labels=name == "patches"))
    broken = any(not np.isfinite(item.relative_l2) for item in comparisons)
    if data.case.size and not broken:  # a network that overflows on patches need not run for minutes
        try:
            found = case_logits_of(np.asarray(data.case), network, spec, batch=spec.max_batch_size)
        except InferenceFailedError as error:
            comparisons.append(_failed("case", str(error)))
        else:
            comparisons.append(compare("case", np.asarray(data.case_logits)[None], found[None], spec, precision))
    return Check(network=what, precision=precision, sha256=sha256, comparisons=tuple(comparisons))


def _in_batches(network: Network, patches: Array, limit: int) -> Array:
    """Run one patch alone and the others together, as far as the batch limit allows."""
    cuts = [0, *range(1, len(patches), max(1, limit)), len(patches)]
    parts = [network(np.ascontiguousarray(patches[a:b])) for a, b in pairwise(cuts) if b > a]
    return np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])


def require(check: Check, *, model: str, accept_unproven: bool, data: ParityData) -> None:
    """Let a check pass, or refuse.

    Args:
        check: What was found.
        model: Name of the model.
        accept_unproven: Let it pass all the same.
        data: What was compared.

    Raises:
        ParityError: The check failed, or the data could prove nothing.
    """
    if accept_unproven:
        return
    if check.passed and not (check.proves and data.is_real):
        raise ParityError(
            f"{model}: no real scan to prove {check.network} with: give scans by --cases, or --accept-unproven to "
            "go on with a model that is marked as unproven"
        )
    if not check.passed:
        raise ParityError(
            f"{model}: {check.network} does not give PyTorch's labels: {'; '.join(check.problems)}; "
            "--accept-unproven writes it all the same, marked as unproven"
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def summary(checks: Iterable[Check]) -> str:
    """Return one line for each comparison, for the terminal."""
    lines = []
    for check in checks:
        for item in check.comparisons:
            dices = [figures.dice for figures in item.labels.values() if figures.voxels]
            lines.append(
                f"  {check.network}, {item.what}: relative L2 {item.relative_l2:.1e}, "
                f"labels differ {item.label_difference_share:.4%}"
                + (f", lowest Dice {min(dices):.6f}" if dices else "")
                + (", one label alone is found here" if len(dices) == 1 else "")
                + ("" if not item.problems else f"  FAILED: {'; '.join(item.problems)}")
            )
    return "\n".join(lines)
