"""What an overview of a data set says: the document behind its page."""

from collections.abc import Mapping
from typing import Literal

from ctseg.documents import Document

BINS = 128
"""Of a histogram of intensities."""


class Histogram(Document):
    """How often intensities occur, in bins of equal width.

    Attributes:
        low: Where the first bin begins.
        high: Where the last one ends; what lies outside is in the outermost bins.
        counts: Voxels in each.
    """

    low: float
    high: float
    counts: tuple[int, ...]


class Percentiles(Document):
    """Of the intensities of some voxels: HU in CT.

    Attributes:
        minimum: The least.
        percentile_00_5: nnU-Net's lower one.
        median: The middle.
        percentile_99_5: nnU-Net's upper one.
        maximum: The most.
        mean: The mean.
    """

    minimum: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    maximum: float
    mean: float


class ChannelOverview(Document):
    """One channel of one case.

    Attributes:
        whole: Of all its voxels.
        foreground: Of those that have a label; None where none has.
        whole_histogram: Of all its voxels.
        foreground_histogram: Of those that have a label.
        no_hu: Why the values of a CT can hardly be HU; empty: they can.
    """

    whole: Percentiles
    foreground: Percentiles | None
    whole_histogram: Histogram
    foreground_histogram: Histogram | None
    no_hu: str = ""


class LabelOverview(Document):
    """One label or region of one case.

    Attributes:
        voxels: How many it has.
        volume_ml: Its volume.
        at_border_of: The faces of the scan that it touches: ``left``, ``right``, ``anterior``, ``posterior``,
            ``superior``, ``inferior``.
    """

    voxels: int
    volume_ml: float
    at_border_of: tuple[str, ...]


class CaseOverview(Document):
    """One case; what could not be read is None or empty, and ``problems`` says why.

    Attributes:
        case: Its name.
        shape: Voxels along (z, y, x) as in the file.
        spacing_mm: Along (z, y, x) as in the file.
        orientation: Where the file's x, y and z run to in the patient, such as ``LPS``.
        left_handed: Whether these three make a left-handed frame, in which voxels lie mirrored.
        channels: In order; those that could not be read are left out.
        labels: By name.
        problems: Sentences: files that are missing or cannot be read, grids that differ, values that are no labels.
        voxels_sha256: Of the first channel; equal ones are the same scan twice.
    """

    case: str
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None
    left_handed: bool | None = None
    channels: Mapping[str, ChannelOverview] = {}
    labels: Mapping[str, LabelOverview] = {}
    problems: tuple[str, ...] = ()
    voxels_sha256: str | None = None


class Finding(Document):
    """Something that sticks out.

    Attributes:
        kind: A word for programs, see :data:`ctseg.train.sticking_out.KINDS`, whose order is that of weight.
        case: The case; None where it is so in the whole data set.
        message: A sentence for people.
    """

    kind: str
    case: str | None
    message: str


class DatasetOverview(Document):
    """The whole of ``overview.json``.

    Attributes:
        dataset: Name of the folder.
        channel_names: In order.
        labels: Values by name, the background left out.
        findings: What sticks out, what matters most first.
        cases: In order of their names.
    """

    schema_version: Literal[1] = 1
    dataset: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    findings: tuple[Finding, ...]
    cases: tuple[CaseOverview, ...]
