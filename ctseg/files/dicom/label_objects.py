"""DICOM objects that hold labels of a series, segmentations and structure sets: plain data, which needs no pydicom."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ctseg.errors import InputError
from ctseg.files.dicom.series import CtSeries, uid_digest


@dataclass(frozen=True)
class LabelObject:
    """A segmentation or a structure set.

    Attributes:
        path: The file.
        kind: What it is.
        sop_instance_uid: Empty where there is none.
        series_uids: Of the series that it refers to.
        names: Of its segments or regions.
    """

    path: Path
    kind: Literal["SEG", "RTSTRUCT"]
    sop_instance_uid: str
    series_uids: frozenset[str]
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """What messages call it: no patient, no path."""
        return f"{self.kind} ({uid_digest(self.sop_instance_uid)})"

    def read(self, series: CtSeries, names: Collection[str]) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Read some of its segments or regions, (z, y, x).

        Raises:
            InputError: It cannot be read, or does not lie on the slices of the series.
        """
        if self.kind == "SEG":
            from ctseg.files.dicom.segmentation_reader import read_segments as read
        else:
            from ctseg.files.dicom.structure_set_reader import read_structure_set as read
        found = read(self.path, series, names)
        if missing := sorted(set(names) - set(found)):
            raise InputError(
                f"{series.label}: {self.label} has changed while it was read: {', '.join(missing)} is gone"
            )
        return found
