"""The demo's pictures: a scan in three planes with labels over it."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

SOFT_TISSUE_HU = (-150.0, 250.0)
BONE_HU = (-200.0, 700.0)
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
LABEL_COLOURS = ListedColormap([(0, 0, 0, 0), (1, 0.85, 0.3, 0.75), (0.85, 0.25, 0.2, 0.55), (0.3, 0.65, 1, 0.45)])
"""Background, bone, muscle, fat."""


@dataclass(frozen=True)
class Scan:
    """HU and the spacing in mm, axes (x, y, z)."""

    hu: np.ndarray
    spacing_mm: tuple[float, float, float]


def draw_labels(
    scan: Scan, predicted: np.ndarray, reference: np.ndarray, title: str, reference_name: str, path: Path
) -> None:
    """Draw the CT, the labels, and the reference's labels, a row each, through the middle of the labels."""
    rows = (("CT", None), ("ctseg", predicted), (reference_name, reference))
    middle = middle_of(reference)
    figure, panels = plt.subplots(3, 3, figsize=(9, 9), facecolor="black", layout="compressed")
    for row, (name, labels) in zip(panels, rows, strict=True):
        for panel, (plane, axis) in zip(row, PLANES, strict=True):
            show(panel, scan, axis, middle, BONE_HU)
            if labels is not None:
                overlay = cut(labels, axis, middle)
                panel.imshow(
                    overlay, cmap=LABEL_COLOURS, vmin=0, vmax=3, interpolation="nearest",
                    origin="upper" if axis == 2 else "lower", aspect=panel.get_aspect(),
                )  # fmt: skip
            panel.set_title(f"{name}, {plane}", color="white", fontsize=9)
    save(figure, f"{title}\n(yellow: bone, red: muscle, blue: fat)", path)


def draw_outlines(
    scan: Scan, predicted: np.ndarray, reference: np.ndarray, title: str, reference_name: str, path: Path
) -> None:
    """Draw the outlines of one label and of its reference over the CT, through the reference's middle."""
    middle = middle_of(reference)
    figure, panels = plt.subplots(1, 3, figsize=(13, 5), facecolor="black")
    for panel, (plane, axis) in zip(panels, PLANES, strict=True):
        show(panel, scan, axis, middle, SOFT_TISSUE_HU)
        for labels, colour in ((reference, "lime"), (predicted, "red")):
            outline = cut(labels, axis, middle)
            if outline.any():
                panel.contour(outline > 0, levels=[0.5], colors=colour, linewidths=1.3)
        panel.set_title(plane, color="white")
    save(figure, f"{title}   (red: ctseg, green: {reference_name})", path)


def middle_of(labels: np.ndarray) -> np.ndarray:
    """The mean index of what is labelled; of the whole grid where nothing is."""
    inside = np.argwhere(labels > 0)
    return inside.mean(axis=0).astype(int) if len(inside) else np.array(labels.shape) // 2


def cut(array: np.ndarray, axis: int, middle: np.ndarray) -> np.ndarray:
    return np.take(array, middle[axis], axis=axis).T


def show(panel: Axes, scan: Scan, axis: int, middle: np.ndarray, window_hu: tuple[float, float]) -> None:
    across, up = (a for a in range(3) if a != axis)
    panel.imshow(
        cut(scan.hu, axis, middle), cmap="gray", vmin=window_hu[0], vmax=window_hu[1],
        origin="upper" if axis == 2 else "lower", aspect=scan.spacing_mm[up] / scan.spacing_mm[across],
    )  # fmt: skip
    panel.axis("off")


def save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(title, color="white")
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
