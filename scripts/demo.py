"""The demo: real CT, a real Triton server, label maps, tables, and pictures. Run it by `make demo`.

It segments three patients that the models never saw, through gRPC on loopback, twice: bone, muscle and fat,
compared with what a rule computes (`composition_labels.py`), then the tumour, compared with the contours that
a physician drew.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.table import Table

from ctseg.cli.main import main as ctseg
from ctseg.model_spec import ModelSpec
from ctseg.numerics.dice import dice
from ctseg.predict.outcomes import Outcome
from ctseg.predict.report import REPORT_NAME, Report
from scripts.composition_labels import composition
from scripts.demo_pictures import Scan, draw_labels, draw_outlines

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "demo_data"
REPOSITORY = ROOT / "model_repository"


@dataclass(frozen=True)
class DemoModel:
    """A model of the demo, and what its label maps are compared with."""

    name: str
    reference: str
    """Who says what is right: shown in the table and the pictures."""
    reference_labels: Callable[[str, Scan], np.ndarray]
    draw: Callable[..., None]


def by_the_rule(_case: str, scan: Scan) -> np.ndarray:
    return composition(scan.hu, scan.spacing_mm)


def by_the_physician(case: str, _scan: Scan) -> np.ndarray:
    return np.asarray(nib.load(DATA / "labels" / f"{case}.nii.gz").dataobj)


MODELS = (
    DemoModel("composition", "rule", by_the_rule, draw_labels),
    DemoModel("sarcoma", "physician", by_the_physician, draw_outlines),
)


def main() -> int:
    """Segment, compare, draw, print; return the worst exit code of ``ctseg predict``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output: Path = parser.parse_args().output
    console = Console(width=None if sys.stdout.isatty() else 100)
    exit_codes = [run(model, output / model.name, console) for model in MODELS]
    console.print(f"label maps, {REPORT_NAME} and pictures are in {output}/")
    return max(exit_codes)


def run(model: DemoModel, output: Path, console: Console) -> int:
    """Segment the three scans with one model; print a table; return the exit code."""
    words = ["predict", "-i", DATA / "images", "-o", output, "-m", model.name, "--repository", REPOSITORY]
    words.append("--disable_tta")  # mirroring takes eight times as long, and two cores are few
    exit_code = ctseg([str(word) for word in words])
    if not (output / REPORT_NAME).is_file():
        return exit_code
    report = Report.model_validate_json((output / REPORT_NAME).read_bytes())
    spec = ModelSpec.from_json((REPOSITORY / model.name / "ctseg.json").read_bytes(), source=model.name)
    transports = sorted({case.made_by.transport for case in report.cases if case.made_by is not None})
    title = f"{model.name}: {', '.join(transports)}"
    table = Table("case", "seconds", "label", "ml", f"ml ({model.reference})", "Dice", title=title)
    for case in report.cases:
        if case.error is not None:
            table.add_row(case.case, "", case.error.message, "", "", "")
        elif case.outputs:
            add_case(table, case, output, spec, model)
    console.print(table)
    return exit_code


def add_case(table: Table, case: Outcome, output: Path, spec: ModelSpec, model: DemoModel) -> None:
    """Compare one case with its reference: a row per label, and a picture."""
    image = nib.load(DATA / "images" / f"{case.case}_0000.nii.gz")
    scan = Scan(np.asarray(image.dataobj), image.header.get_zooms()[:3])
    reference = model.reference_labels(case.case, scan)
    predicted = np.asarray(nib.load(output / case.outputs[0].name).dataobj)
    voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
    agreements = []
    for name, values in spec.named_values.items():
        ours, theirs = np.isin(predicted, values), np.isin(reference, values)
        agreements.append((name, dice(ours, theirs)))
        table.add_row(
            case.case, f"{case.seconds.total:.1f}", name,
            f"{ours.sum() * voxel_ml:.1f}", f"{theirs.sum() * voxel_ml:.1f}", f"{agreements[-1][1]:.3f}",
        )  # fmt: skip
    title = f"{case.case}: Dice " + ", ".join(f"{name} {value:.3f}" for name, value in agreements)
    model.draw(scan, predicted, reference, title, model.reference, output / f"{case.case}.png")


if __name__ == "__main__":
    sys.exit(main())
