"""Probabilities of every label, written piece by piece: they need not fit into memory."""

import contextlib
import math
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ctseg.errors import OutputError
from ctseg.files.atomic import replacing, temporary_path

_ARRAY_NAME = "probabilities"
_COPY_BYTES = 1 << 24


def _take_space(file: IO[bytes], size: int) -> None:
    """Append zeros; the file system does it at once where it can."""
    if hasattr(os, "posix_fallocate"):
        file.flush()
        os.posix_fallocate(file.fileno(), file.tell(), size)
        return
    for first in range(0, size, _COPY_BYTES):
        file.write(bytes(min(_COPY_BYTES, size - first)))


class ProbabilityFile:
    """An ``.npz`` with one array ``probabilities``, as nnU-Net writes it.

    The array is filled on disk, in a file beside ``path`` that :meth:`close` removes.

    Args:
        path: The ``.npz`` to write; there only once :meth:`commit` has returned.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._array_path = temporary_path(path)
        self._array: np.memmap | None = None

    def allocate(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return the array to fill, zero at first.

        Args:
            shape: (heads, z, y, x) on the grid of the scan as read.

        Raises:
            OutputError: The file cannot be made, for example because the disk is full.
        """
        try:
            with self._array_path.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                offset = file.tell()
                # really take the space now: writing into a sparse mapping on a full disk kills the process
                _take_space(file, 4 * math.prod(shape))
            self._array = np.memmap(self._array_path, dtype="<f4", mode="r+", offset=offset, shape=shape)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror or error}") from error
        return self._array

    def commit(self) -> None:
        """Write the ``.npz`` and put it in its place.

        Raises:
            OutputError: It cannot be written; an older file of that name stays.
        """
        if self._array is None:
            raise ValueError("nothing was allocated")
        with (
            replacing(self._path) as archive_path,
            zipfile.ZipFile(archive_path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(f"{_ARRAY_NAME}.npy", "w", force_zip64=True) as member,
            self._array_path.open("rb") as source,
        ):
            self._array.flush()
            while piece := source.read(_COPY_BYTES):
                member.write(piece)

    def close(self) -> None:
        """Remove what is not the finished file."""
        self._array = None
        with contextlib.suppress(OSError):  # a disk that is away
            self._array_path.unlink(missing_ok=True)
