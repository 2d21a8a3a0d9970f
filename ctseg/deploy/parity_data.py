"""What networks are compared on: patches and one whole prepared case, with PyTorch's logits.

There are two sets: real scans, which stay with who exported, and a phantom, which may go wherever the network goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ctseg.errors import SpecError
from ctseg.model_spec import ParitySet

Array = npt.NDArray[np.float32]
"""Voxels or logits; each use says the shape."""


@dataclass(frozen=True)
class PreparedCase:
    """A scan as the network sees it.

    Attributes:
        name: For people.
        voxels: (channels, z, y, x), float32.
    """

    name: str
    voxels: Array


_ARRAYS = ("patches", "patches_logits", "random", "random_logits", "case", "case_logits")
_VOTES = ("patches_votes", "patches_leads", "random_votes", "random_leads")


_NOTES: Mapping[ParitySet, str] = {
    "scans": "PATIENT DATA unless the source is public: patches and one whole scan as the network sees them, and\n"
    "PyTorch's logits of them. They stay with who exported: no image carries them. To put other scans in\n"
    "their place, export again with them.\n",
    "phantom": "No patient: patches and a whole volume of ellipsoids and noise as the network sees them, random\n"
    "patches, and PyTorch's logits of them. They may go wherever the network goes.\n",
}


@dataclass(frozen=True, eq=False)
class ParityData:
    """Patches and one prepared case, with PyTorch's logits of the network as it is served.

    Attributes:
        parity_set: Real scans or the phantom.
        source: Where the voxels come from, for people; names no case.
        patches: (n, channels, *patch_size), float32, cut from the scans or the phantom.
        patches_logits: (n, heads, *patch_size), float32.
        random: (m, channels, *patch_size), float32, a supplement; labels on them mean nothing.
        random_logits: (m, heads, *patch_size), float32.
        case: (channels, z, y, x), float32, a whole prepared scan; empty when there is none.
        case_logits: (heads, z, y, x), float32.
        patches_votes: (n, heads, *patch_size), uint8: how many folds give the voxel to each head; None where folds do
            not vote.
        patches_leads: (n, *patch_size), float32: by how much the least sure of them decides it.
        random_votes: Of the random patches.
        random_leads: Likewise.
        names: Of the scans; they stay in the folder of the scans, and are not read again.
    """

    parity_set: ParitySet
    source: str
    patches: Array
    patches_logits: Array
    random: Array
    random_logits: Array
    case: Array
    case_logits: Array
    patches_votes: npt.NDArray[np.uint8] | None = None
    patches_leads: Array | None = None
    random_votes: npt.NDArray[np.uint8] | None = None
    random_leads: Array | None = None
    names: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether patches and a case are there, without which nothing is proven."""
        return len(self.patches) > 0 and self.case.size > 0

    def write(self, folder: Path) -> None:
        """Write ``*.npy`` files and a note that says whether these are patient data."""
        folder.mkdir()
        for name in (*_ARRAYS, *_VOTES):
            if (array := getattr(self, name)) is not None:
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        names = f" ({', '.join(self.names)})" if self.names else ""
        (folder / "README.txt").write_text(
            f"Source: {self.source}{names}\n\n{_NOTES[self.parity_set]}"
            "`ctseg build` compares what it builds with these.\n",
            encoding="utf-8",
        )

    @classmethod
    def read(cls, folder: Path, parity_set: ParitySet, *, source: str) -> "ParityData":
        """Read what :meth:`write` wrote; arrays are mapped, not loaded.

        Raises:
            SpecError: A file is missing or broken.
        """
        try:
            there = [name for name in _VOTES if (folder / f"{name}.npy").is_file()]
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in (*_ARRAYS, *there)
            }
        except (OSError, ValueError) as error:
            raise SpecError(f"{folder}: parity data cannot be read: {error}: export the model again") from error
        return cls(parity_set=parity_set, source=source, **arrays)
