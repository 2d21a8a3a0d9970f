"""What networks are compared on: patches and one whole prepared case, with PyTorch's logits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ctseg.errors import SpecError

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
            "their place, export again with them.\n",
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
