"""CaseSegmenter: a scan in, labels out; by windows that are cut here."""

from typing import Protocol

from ctseg.arrays import LabelMap
from ctseg.files.volume import Volume, VolumeHeader
from ctseg.predict.contract import ScanContract, contract_of
from ctseg.predict.estimate import MemoryEstimate, WindowLoad, estimate_memory
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.predictor import Identity, PatchPredictor
from ctseg.predict.segment import BATCHES_AHEAD, CaseContext, Scan, Segmentation, WindowOptions, segment


class CaseSegmenter(Protocol):
    """Turns scans into labels, and says with what. ``segment`` is called from several threads at once.

    A folder run knows only this. Windows that are cut here are one way to do it (:class:`WindowSegmenter`), whole scans
    that are sent to a server another.
    """

    @property
    def identity(self) -> Identity:
        """Which network runs where."""
        ...

    @property
    def contract(self) -> ScanContract:
        """What it takes and gives."""
        ...

    @property
    def cases_in_flight(self) -> int | None:
        """How many cases at once keep it busy; None: as many as a run overlaps anyway."""
        ...

    def estimate(self, header: VolumeHeader, *, saves_probabilities: bool) -> MemoryEstimate:
        """Estimate the memory that reading and segmenting a scan takes in this process, before it is read.

        Args:
            header: What the scan's files say, by the reader that the contract names.
            saves_probabilities: Whether probabilities are written.

        Raises:
            InputError: The scan cannot be segmented by this model.
        """
        ...

    def segment(self, volume: Volume, context: CaseContext | None = None) -> Segmentation:
        """Segment one scan.

        Args:
            volume: The scan, read by the reader that the contract names.
            context: What belongs to the case; by default nothing does.

        Raises:
            InputError: The scan cannot be segmented by this model.
            ServerError: The network gave no answer; the children say why.
            OutputError: The probabilities cannot be written.
        """
        ...

    def abort(self) -> None:
        """Wait for nothing any more: every call of :meth:`segment`, now or later, raises ``CancelledError``."""
        ...

    def close(self) -> None:
        """Finish what was begun, unless aborted, and free what is held; the network itself stays open."""
        ...


def window_load(inference: InferenceQueue, options: WindowOptions) -> WindowLoad:
    """Return how many windows of a case are on their way to a network at most."""
    predictor = inference.predictor
    running = predictor.max_in_flight * predictor.max_batch_size
    return WindowLoad(
        waiting=BATCHES_AHEAD * running,
        running=running,
        mirrored=inference.requests_per_batch > 1,
        tile_step_size=options.tile_step_size,
        votes=inference.votes,
    )


class WindowSegmenter:
    """Cuts windows here and runs them on a predictor that all cases share.

    Args:
        predictor: Runs the network; mirroring is added here.
        options: How windows are laid and run.
    """

    def __init__(self, predictor: PatchPredictor, options: WindowOptions | None = None) -> None:
        self._options = options or WindowOptions()
        self._inference = InferenceQueue(
            predictor, mirroring=self._options.mirroring, votes=bool(self._options.agreement)
        )
        self._contract = contract_of(predictor.spec)

    @property
    def identity(self) -> Identity:
        """The predictor's."""
        return self._inference.predictor.identity

    @property
    def contract(self) -> ScanContract:
        """That of the predictor's spec."""
        return self._contract

    @property
    def cases_in_flight(self) -> None:
        """None."""
        return None

    def estimate(self, header: VolumeHeader, *, saves_probabilities: bool) -> MemoryEstimate:
        """See :meth:`CaseSegmenter.estimate`."""
        load = window_load(self._inference, self._options)
        return estimate_memory(header, self._inference.predictor.spec, load, saves_probabilities=saves_probabilities)

    def segment(self, volume: Volume, context: CaseContext | None = None) -> Segmentation:
        """See :meth:`CaseSegmenter.segment`."""
        return segment(Scan.of(volume), self._inference, self._options, context or CaseContext())

    def abort(self) -> None:
        """See :meth:`CaseSegmenter.abort`."""
        self._inference.abort()

    def close(self) -> None:
        """See :meth:`CaseSegmenter.close`."""
        self._inference.close()


def segment_volume(
    volume: Volume, predictor: PatchPredictor, *, tile_step_size: float = 0.5, mirroring: bool = True
) -> LabelMap:
    """Segment one scan.

    Args:
        volume: The scan, read by the reader that the predictor's spec names.
        predictor: Runs the network.
        tile_step_size: Step between windows as a fraction of the patch, in (0, 1].
        mirroring: Average over mirrored patches, if the spec says that the client does this.

    Returns:
        Labels (z, y, x) on the grid of the scan as read.

    Raises:
        InputError: The scan cannot be segmented by this model.
        ServerError: The network gave no answer; the children say why.
    """
    segmenter = WindowSegmenter(predictor, WindowOptions(tile_step_size=tile_step_size, mirroring=mirroring))
    try:
        return segmenter.segment(volume).labels
    finally:
        segmenter.close()
