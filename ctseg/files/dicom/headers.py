"""Headers of DICOM files, read once and in parallel, put together to series."""

from collections.abc import Sequence
from pathlib import Path

from ctseg.files.dicom.series import FoundDicom


def find_series(files: Sequence[Path], *, keywords: Sequence[str] = ()) -> FoundDicom:
    """Read the headers of files with any names, and say which series they hold.

    Args:
        files: Of any kind; what is no DICOM is in ``others``.
        keywords: Of tags that are kept as text in :attr:`CtSeries.tags`.
    """
    raise NotImplementedError
