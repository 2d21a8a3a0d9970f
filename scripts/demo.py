"""The demo: real CT, a real Triton server, label maps, a table, and pictures. Run it by `make demo`.

It segments three patients that the model never saw, through gRPC on loopback, and compares the
result with the contours that a physician drew.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from rich.console import Console
from rich.table import Table

from ctseg.cli.main import main as ctseg
from ctseg.model_spec import ModelSpec
from ctseg.numerics.dice import dice
from ctseg.predict.report import REPORT_NAME, CaseReport, Report

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "demo_data"
REPOSITORY = ROOT / "model_repository"
MODEL = "sarcoma"
WINDOW_HU = (-150.0, 250.0)


def main() -> int:
    """Segment, compare, draw, print; return the exit code of ``ctseg predict``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output: Path = parser.parse_args().output
    words = ["predict", "-i", DATA / "images", "-o", output, "-m", MODEL, "--repository", REPOSITORY]
    words.append("--disable_tta")  # mirroring takes eight times as long, and two cores are few
    exit_code = ctseg([str(word) for word in words])
    if not (output / REPORT_NAME).is_file():
        return exit_code
    report = Report.model_validate_json((output / REPORT_NAME).read_bytes())
    spec = ModelSpec.from_json((REPOSITORY / MODEL / "ctseg.json").read_bytes(), source=MODEL)

    table = Table("case", "seconds", "label", "volume ml", "true ml", "Dice", title=f"{MODEL}: {report.transport}")
    for case in report.cases:
        if case.status == "failed":
            table.add_row(case.case, "", case.error.message if case.error else "", "", "", "")
            continue
        add_case(table, case, output, spec)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"label maps, {REPORT_NAME} and pictures are in {output}/")
    return exit_code


def add_case(table: Table, case: CaseReport, output: Path, spec: ModelSpec) -> None:
    """Compare one case with the truth: a row per label, and a picture."""
    image = nib.load(DATA / "images" / f"{case.case}_0000.nii.gz")
    truth = np.asarray(nib.load(DATA / "labels" / f"{case.case}.nii.gz").dataobj)
    predicted_image = nib.load(output / str(case.output))
    predicted = np.asarray(predicted_image.dataobj)
    spacing_mm = np.array(image.header.get_zooms()[:3])
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for name, values in spec.named_values.items():
        ours, theirs = np.isin(predicted, values), np.isin(truth, values)
        agreement = dice(ours, theirs)
        table.add_row(
            case.case, f"{case.seconds.total:.1f}", name,
            f"{ours.sum() * voxel_ml:.1f}", f"{theirs.sum() * voxel_ml:.1f}", f"{agreement:.3f}",
        )  # fmt: skip
    title = f"{case.case}: Dice {agreement:.3f}"
    draw(np.asarray(image.dataobj), predicted, truth, spacing_mm, title, output / f"{case.case}.png")


def draw(
    voxels: np.ndarray, predicted: np.ndarray, truth: np.ndarray, spacing_mm: np.ndarray, title: str, path: Path
) -> None:
    """Draw axial, coronal and sagittal slices through the middle of the true label.

    Args:
        voxels: HU, axes (x, y, z).
        predicted: Labels on the same grid; outlined in red.
        truth: Labels on the same grid; outlined in green.
        spacing_mm: Along (x, y, z).
        title: Above the picture.
        path: PNG to write.
    """
    inside = np.argwhere(truth > 0)
    middle = inside.mean(axis=0).astype(int) if len(inside) else np.array(truth.shape) // 2
    figure, panels = plt.subplots(1, 3, figsize=(13, 5), facecolor="black")
    for panel, (name, axis) in zip(panels, (("axial", 2), ("coronal", 1), ("sagittal", 0)), strict=True):
        across, up = (a for a in range(3) if a != axis)

        def plane(array: np.ndarray, axis: int = axis) -> np.ndarray:
            return np.take(array, middle[axis], axis=axis).T

        panel.imshow(
            plane(voxels), cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1],
            origin="upper" if axis == 2 else "lower", aspect=spacing_mm[up] / spacing_mm[across],
        )  # fmt: skip
        for labels, colour in ((truth, "lime"), (predicted, "red")):
            if plane(labels).any():
                panel.contour(plane(labels) > 0, levels=[0.5], colors=colour, linewidths=1.3)
        panel.set_title(name, color="white")
        panel.axis("off")
    figure.suptitle(f"{title}   (red: ctseg, green: physician)", color="white")
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
