"""What a person writes who has several nnU-Nets and wants one label map.

``python -m tests.support.plain_union SCAN OUTPUT.npz FOLDER ...`` segments a scan with the trained model of each
folder, one after the other, and numbers their labels on: ``union``, and a label map under the name of each folder.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.support.nnunet_reference import reference_predictor, reference_segmentation


def numbered_on(maps: list[np.ndarray], counts: list[int]) -> np.ndarray:
    """Put label maps with so many labels each into one; later ones are written over."""
    union = np.zeros(maps[0].shape, np.uint16)
    before = 0
    for labels, count in zip(maps, counts, strict=True):
        union[labels > 0] = labels[labels > 0].astype(np.uint16) + before
        before += count
    return union


def main(scan: Path, output: Path, folders: list[Path]) -> None:
    maps = [reference_segmentation(reference_predictor(folder), [scan]) for folder in folders]
    counts = [len(json.loads((folder / "dataset.json").read_text())["labels"]) - 1 for folder in folders]
    named = {folder.name: labels for folder, labels in zip(folders, maps, strict=True)}
    np.savez(output, union=numbered_on(maps, counts), **named)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]])
