"""What the parity gate found, as documents: ``parity.json`` for programs, ``parity.md`` for people."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, ValidationError

from ctseg.documents import Document
from ctseg.errors import SpecError
from ctseg.model_spec import Parity, ParitySet, Precision


class _Figures(Document):
    # figures may be infinite or NaN: that is what a failed check reports
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")


class LabelFigures(_Figures):
    """Agreement about one label or region."""

    voxels: int
    """Of the reference."""
    differing: int
    dice: float
    """1 where both are empty."""


class Comparison(_Figures):
    """Two sets of logits, compared."""

    what: str
    """``patches``, ``random patches`` or ``case``."""
    parity_set: ParitySet = "scans"
    """Where they come from; of the phantom's, labels count only where PyTorch decides them clearly."""
    relative_l2: float
    max_abs_error: float
    label_difference_share: float
    labels: dict[str, LabelFigures]
    problems: tuple[str, ...]
    """Why this fails; empty when it does not."""

    @property
    def title(self) -> str:
        """What was compared, for people."""
        is_phantom = self.parity_set == "phantom" and self.what != "random patches"
        return f"phantom {self.what}" if is_phantom else self.what


class Check(_Figures):
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
        return tuple(f"{item.title}: {problem}" for item in self.comparisons for problem in item.problems)

    @property
    def passed(self) -> bool:
        """Whether there was something to compare, and nothing was wrong."""
        return bool(self.comparisons) and not self.problems

    @property
    def proven_with(self) -> tuple[ParitySet, ...]:
        """The sets on which it passed; none where it failed, or one of them lacks patches or a whole case."""
        found: dict[ParitySet, set[str]] = {}
        for item in self.comparisons:
            found.setdefault(item.parity_set, set()).add(item.what)
        is_complete = all({"patches", "case"} <= names for names in found.values())
        return tuple(found) if self.passed and is_complete else ()

    @property
    def proves(self) -> bool:
        """Whether it passed on what proves something: patches and a whole case of every set."""
        return bool(self.proven_with)

    def as_parity(self, *, detail: str = "") -> Parity:
        """Return the short form that travels in the spec; its figures are the worst of the scans, where there are."""
        with_labels = [item for item in self.comparisons if item.labels]
        worst = [item for item in with_labels if item.parity_set == "scans"] or with_labels or self.comparisons
        dices = [figures.dice for item in worst for figures in item.labels.values() if figures.voxels]
        return Parity(
            state="proven" if self.proves else "unproven",
            proven_with=self.proven_with,
            graph_proven_with=self.proven_with,
            relative_l2=_finite(max((item.relative_l2 for item in worst), default=None)),
            max_abs_error=_finite(max((item.max_abs_error for item in worst), default=None)),
            label_difference_share=_finite(max((item.label_difference_share for item in worst), default=None)),
            min_dice=_finite(min(dices, default=None)),
            detail=detail or "; ".join(self.problems)[:500],
        )


class Variant(_Figures):
    """A model file of the bundle and what was found about it."""

    file: str
    precision: Precision
    output_dtype: Literal["FP32", "FP16"] = "FP32"
    sha256: str
    kept_fp32: str = ""
    """Which of the mixed networks this is: what stayed in FP32."""
    checks: tuple[Check, ...]

    @property
    def proven(self) -> bool:
        """Whether there are checks and all of them prove it."""
        return bool(self.checks) and all(check.proves for check in self.checks)

    @property
    def proven_with(self) -> tuple[ParitySet, ...]:
        """The sets on which every check passed; none where one proves nothing."""
        return self.checks[0].proven_with if self.proven else ()


class ParityReport(_Figures):
    """``parity.json`` of a bundle, or of a version in a model repository."""

    schema_version: Literal[1] = 1
    model: str
    network_sha256: str
    data: str
    """Where the scans of the parity data come from; empty where there were none."""
    phantom: str = ""
    """What the phantom was; empty where there was none."""
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
        on_what = " and ".join(part for part in (self.data, self.phantom) if part)
        lines = [
            f"# Parity of {self.model}",
            "",
            f"Compared with PyTorch on {on_what}. Written {self.created}; network {self.network_sha256[:12]}.",
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
                        f"| {item.title} | {item.relative_l2:.2e} | {item.max_abs_error:.2e} "
                        f"| {item.label_difference_share:.4%} "
                    )
                    rows = [f"| {n} | {f.voxels} | {f.differing} | {f.dice:.6f} |" for n, f in item.labels.items()]
                    rows = rows or ["| – | – | – | – |"]
                    lines += [head + rows[0], *(f"| | | | {row}" for row in rows[1:])]
                lines += ["", *([f"- {problem}" for problem in check.problems] or ["No problem found."])]
        return "\n".join(lines) + "\n"


def summary(checks: Iterable[Check]) -> str:
    """Return one line for each comparison, for the terminal."""
    lines = []
    for check in checks:
        for item in check.comparisons:
            dices = [figures.dice for figures in item.labels.values() if figures.voxels]
            lines.append(
                f"  {check.network}, {item.title}: relative L2 {item.relative_l2:.1e}, "
                f"labels differ {item.label_difference_share:.4%}"
                + (f", lowest Dice {min(dices):.6f}" if dices else "")
                + (", one label alone is found here" if len(dices) == 1 else "")
                + ("" if not item.problems else f"  FAILED: {'; '.join(item.problems)}")
            )
    return "\n".join(lines)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
