"""Segmenters that leave the work to another, and change what little they are for."""

from ctseg.files.volume import Volume, VolumeHeader
from ctseg.predict.contract import ScanContract
from ctseg.predict.estimate import MemoryEstimate
from ctseg.predict.predictor import Identity
from ctseg.predict.segment import CaseContext, Segmentation
from ctseg.predict.segmenter import CaseSegmenter


class Forwarding:
    """Does what another segmenter does.

    Args:
        segmenter: The one that works.
    """

    def __init__(self, segmenter: CaseSegmenter) -> None:
        self._segmenter = segmenter

    @property
    def identity(self) -> Identity:
        """See :attr:`CaseSegmenter.identity`."""
        return self._segmenter.identity

    @property
    def contract(self) -> ScanContract:
        """See :attr:`CaseSegmenter.contract`."""
        return self._segmenter.contract

    @property
    def cases_in_flight(self) -> int | None:
        """See :attr:`CaseSegmenter.cases_in_flight`."""
        return self._segmenter.cases_in_flight

    def estimate(self, header: VolumeHeader, *, saves_probabilities: bool) -> MemoryEstimate:
        """See :meth:`CaseSegmenter.estimate`."""
        return self._segmenter.estimate(header, saves_probabilities=saves_probabilities)

    def segment(self, volume: Volume, context: CaseContext | None = None) -> Segmentation:
        """See :meth:`CaseSegmenter.segment`."""
        return self._segmenter.segment(volume, context)

    def abort(self) -> None:
        """See :meth:`CaseSegmenter.abort`."""
        self._segmenter.abort()

    def close(self) -> None:
        """See :meth:`CaseSegmenter.close`."""
        self._segmenter.close()


class KeptOpen(Forwarding):
    """A segmenter that many folder runs share, and whose owner closes it: it stays open when one of them ends."""

    def close(self) -> None:
        """Do nothing."""
