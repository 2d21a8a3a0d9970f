"""The demo: real CT, a real Triton server, label maps, and pages to look at them. Run it by `make demo`.

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
from ctseg.evaluate.folder import evaluate_folder
from ctseg.evaluate.pages.run import FOLDER, INDEX
from ctseg.predict.report import REPORT_NAME, Report
from scripts.composition_labels import composition

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "demo_data"
IMAGES = DATA / "images"
REPOSITORY = ROOT / "model_repository"


@dataclass(frozen=True)
class DemoModel:
    """A model of the demo, and what its label maps are compared with."""

    name: str
    reference: str
    """Who says what is right: shown in the table."""
    references: Callable[[Path], Path]
    """Returns the folder of what is right; may fill one below the demo's output."""


def by_the_rule(output: Path) -> Path:
    """Compute what the rule says of each scan."""
    folder = output / "composition_by_the_rule"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(IMAGES.glob("*_0000.nii.gz")):
        image = nib.load(path)
        labels = composition(np.asarray(image.dataobj), image.header.get_zooms()[:3])
        name = path.name.replace("_0000", "")
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), image.affine), folder / name)
    return folder


def by_the_physician(_output: Path) -> Path:
    return DATA / "labels"


MODELS = (DemoModel("composition", "rule", by_the_rule), DemoModel("sarcoma", "physician", by_the_physician))


def main() -> int:
    """Segment, compare, make pages, print; return the worst exit code of ``ctseg predict``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output: Path = parser.parse_args().output
    console = Console(width=None if sys.stdout.isatty() else 100)
    exit_codes = [run(model, output, console) for model in MODELS]
    pages = [output / model.name / FOLDER / INDEX for model in MODELS]
    console.print(f"label maps, {REPORT_NAME} and pages are in {output}/; open in a browser:")
    for page in pages:
        if page.is_file():
            print(page.absolute().as_uri())  # never wrapped
    return max(exit_codes)


def run(model: DemoModel, output: Path, console: Console) -> int:
    """Segment the three scans with one model; make its pages and print a table; return the exit code."""
    labels = output / model.name
    words = ["predict", "-i", IMAGES, "-o", labels, "-m", model.name, "--repository", REPOSITORY]
    words.append("--disable_tta")  # mirroring takes eight times as long, and two cores are few
    exit_code = ctseg([str(word) for word in words])
    if not (labels / REPORT_NAME).is_file():
        return exit_code
    references = model.references(output)
    words = ["report", "-o", labels, "-i", IMAGES, "--html", "-r", references, "--quiet"]
    page_code = ctseg([str(word) for word in words])
    console.print(table_of(model, labels, references))
    return max(exit_code, page_code)


def table_of(model: DemoModel, labels: Path, references: Path) -> Table:
    """Return a row for each label of each case."""
    report = Report.model_validate_json((labels / REPORT_NAME).read_bytes())
    scores = {case.case: case.labels for case in evaluate_folder(labels, references).cases}
    transports = sorted({case.made_by.transport for case in report.cases if case.made_by is not None})
    title = f"{model.name}: {', '.join(transports)}"
    table = Table("case", "seconds", "label", "ml", f"ml ({model.reference})", "Dice", title=title)
    for case in report.cases:
        if case.error is not None:
            table.add_row(case.case, "", case.error.message, "", "", "")
        for name, found in scores.get(case.case, {}).items():
            table.add_row(
                case.case, f"{case.seconds.total:.1f}", name,
                f"{found.volume_ml:.1f}", f"{found.reference_volume_ml:.1f}", f"{found.dice:.3f}",
            )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
