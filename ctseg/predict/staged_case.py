"""One case from its files to new files in the run's own folder, from where they are put in place."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from ctseg.arrays import LabelMap
from ctseg.errors import InputError
from ctseg.files.atomic import longest_name
from ctseg.files.cases import Case
from ctseg.files.digests import sha256_of_file
from ctseg.files.formats import of_series
from ctseg.files.identity import KnownFile, known, printable, stamp_of
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import Volume, read_label_map, read_volume, read_volume_header
from ctseg.model_spec import Reader
from ctseg.numerics.volumes import volumes_ml
from ctseg.predict.case_files import CaseFiles, name_problem, series_of
from ctseg.predict.estimate import MemoryEstimate, with_writing
from ctseg.predict.ledger import Staged
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.oddities import Oddity, oddities
from ctseg.predict.options import BatchOptions, OutputFormat
from ctseg.predict.outcomes import FailedFormat, MadeBy, Outcome, RanOn
from ctseg.predict.predictor import Runner
from ctseg.predict.progress import Progress, StageClock
from ctseg.predict.segment import CaseContext, Segmentation
from ctseg.predict.segmenter import CaseSegmenter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelsAtHand:
    """The label map of a case that was segmented before, by the same model with the same options.

    Attributes:
        path: Its file, which is still as it was written.
        outcome: Of the case.
    """

    path: Path
    outcome: Outcome

    def segmentation(self, volume: Volume, reader: Reader, inputs: Sequence[KnownFile]) -> Segmentation | None:
        """Return the labels as if they had just been made; None: they are not those of the scan, or cannot be read.

        What was told of the scan, the labels and the files is told anew by whoever looks at them anew.

        Args:
            volume: The scan.
            reader: By which it was read.
            inputs: The bytes that were read.
        """
        outcome = self.outcome
        if [part.sha256 for part in inputs] != [part.sha256 for part in outcome.inputs]:
            return None
        try:
            labels = read_label_map(self.path, reader, volume)
            if sha256_of_file(self.path) not in {file.sha256 for file in outcome.outputs}:
                return None
        except (InputError, OSError):
            return None
        warnings = outcome.warnings if outcome.segmentation_warnings is None else outcome.segmentation_warnings
        logger.info("%s: its label map is there, the network is not asked again", outcome.case)
        return Segmentation(
            labels, outcome.windows, outcome.bytes_sent, outcome.bytes_received, warnings,
            outcome.server_seconds, outcome.agreement,
        )  # fmt: skip


class CaseStager:
    """Segments cases into the run's own folder, on any number of threads.

    Args:
        segmenter: Segments them.
        scratch: The run's own folder.
        options: How they are segmented.
        budget: Memory that they share.
        progress: Told of each.
        made_by: What stands in their outcomes.

    Attributes:
        case_files: Which files the cases get.
    """

    def __init__(
        self,
        segmenter: CaseSegmenter,
        scratch: Path,
        options: BatchOptions,
        budget: MemoryBudget,
        progress: Progress,
        made_by: MadeBy,
    ) -> None:
        self._segmenter = segmenter
        self._scratch = scratch
        self._options = options
        self._budget = budget
        self._progress = progress
        self._made_by = made_by
        self.case_files = CaseFiles(segmenter.contract, options, made_by, longest_name=longest_name(scratch))

    def stage(
        self,
        case: Case,
        index: int,
        is_over: Callable[[], bool],
        formats: Sequence[OutputFormat] | None = None,
        at_hand: LabelsAtHand | None = None,
    ) -> Staged:
        """Read, segment and write one case into the run's own folder, once there is memory for it.

        Args:
            case: The case.
            index: Of the case among all; smaller goes first on the network.
            is_over: Whether nothing more is to begin, asked once there is memory.
            formats: In which it is written; None: those that are asked for.
            at_hand: Labels that need not be made again; what cannot be read of them is.

        Raises:
            InputError: The scan cannot be segmented, or be written in none of the formats.
            OutputError: It cannot be written.
            ServerError: The network gave no answer.
            CancelledError: It is over.
        """
        if case.problem is not None:
            raise InputError(case.problem)
        case = _with_rows(case, up=self._options.dicom_rows == "up")
        contract, saves_probabilities = self._segmenter.contract, self._options.save_probabilities
        probabilities_path = self._scratch / _probabilities_name(case)
        if saves_probabilities and (why := name_problem(case, probabilities_path.name, longest_name(self._scratch))):
            raise InputError(why)
        formats, refused = self._formats(case, formats)
        warnings = _told(case, () if (series := series_of(case)) is None else series.warnings)
        clock = StageClock(case.name, self._progress)
        with (
            self._memory_for(case, clock, formats),
            _probability_file(probabilities_path, wanted=saves_probabilities) as probabilities,
        ):
            if is_over():
                raise CancelledError
            with clock.stage("read"):
                volume, previous, inputs = _read(case, contract.reader)
            result: Segmentation | None = None
            ran_on: tuple[RanOn, ...] = ()
            if at_hand is not None and not saves_probabilities:
                result, ran_on = at_hand.segmentation(volume, contract.reader, inputs), at_hand.outcome.ran_on
            if result is None:
                before = self._segmenter.identity.runners
                result = self._segmenter.segment(volume, CaseContext(index, clock, probabilities, previous))
                ran_on = _ran_on(before, self._segmenter.identity.runners)
            del previous
            with clock.stage("write"):
                volumes = volumes_ml(result.labels, contract.labels, volume.geometry.spacing_mm)
                odd = oddities(volume, result.labels, volumes, contract)
                serious, usual = _told_by(odd, is_usual=False), _told_by(odd, is_usual=True)
                _told(case, serious)
                for short in filter(None, (one.in_short for one in odd)):
                    logger.info("%s: %s", printable(case.name), short)
                written = self.case_files.write(case, result.labels, volume, volumes, self._scratch, formats)
                written.failed[:0] = refused
                if probabilities is not None:
                    probabilities.commit()
                    written.files[probabilities_path.name] = probabilities_path
        return Staged(Outcome(
            case=printable(case.name), status="ok", made_by=self._made_by, inputs=inputs,
            volumes_ml=volumes, seconds=clock.seconds, windows=result.windows, bytes_sent=result.bytes_sent,
            bytes_received=result.bytes_received,
            warnings=tuple(
                dict.fromkeys((*warnings, *serious, *result.warnings, *_mixes(ran_on), *written.warnings, *usual))
            ),
            segmentation_warnings=result.warnings,
            ran_on=ran_on, server_seconds=result.server_seconds, agreement=result.agreement, **written.said,
        ), written.files)  # fmt: skip

    def _formats(
        self, case: Case, formats: Sequence[OutputFormat] | None
    ) -> tuple[Sequence[OutputFormat], tuple[FailedFormat, ...]]:
        """Return the formats that can be written as far as headers tell, and the others, which are told.

        Raises:
            InputError: There are only others.
        """
        formats = self.case_files.asked(case) if formats is None else formats
        refused = self.case_files.refused(case, formats)
        if not (writable := self.case_files.writable(case, formats)):
            raise InputError("; ".join(f"{failed.format}: {failed.error.message}" for failed in refused))
        for failed in refused:
            logger.warning("%s: %s cannot be written: %s", printable(case.name), failed.format, failed.error.message)
        return writable, refused

    def wanted(self, case: Case, formats: Sequence[OutputFormat] | None = None) -> tuple[str, ...]:
        """Return the names of the files that are to be written, of those that can be as far as headers tell.

        Args:
            case: The case.
            formats: In which it is written; None: those that are asked for.
        """
        formats = self.case_files.asked(case) if formats is None else formats
        names = self.case_files.names(case)
        probabilities = (_probabilities_name(case),) if self._options.save_probabilities else ()
        return (*(names[format_] for format_ in self.case_files.writable(case, formats)), *probabilities)

    def names(self, case: Case) -> tuple[str, ...]:
        """Return the names that files of the case can have."""
        return (*self.case_files.names(case).values(), _probabilities_name(case))

    def clear(self, case: Case) -> None:
        """Remove what lies of the case in the run's own folder."""
        for name in self.names(case):
            with suppress(OSError):
                (self._scratch / name).unlink(missing_ok=True)

    def estimate(self, case: Case, formats: Sequence[OutputFormat]) -> MemoryEstimate:
        """Estimate the memory that a case takes by its headers, writing it in some formats included.

        Raises:
            InputError: It cannot be segmented.
        """
        header = read_volume_header(case.channels, self._segmenter.contract.reader)
        estimate = self._segmenter.estimate(header, saves_probabilities=self._options.save_probabilities)
        writing_bytes = self.case_files.writing_bytes(prod(header.geometry.shape), formats)
        return with_writing(estimate, header, self._segmenter.contract.label_dtype.itemsize, writing_bytes)

    @contextmanager
    def _memory_for(self, case: Case, clock: StageClock, formats: Sequence[OutputFormat]) -> Iterator[None]:
        """Wait until the memory is there that a case will take by its headers, and hold it meanwhile."""
        with clock.stage("read"):
            estimate = self.estimate(case, formats)
        with self._budget.reserved(estimate, printable(case.name)):
            yield


def _with_rows(case: Case, *, up: bool) -> Case:
    """Return a case whose rows are read in an order, if it is a DICOM series."""
    series = series_of(case)
    return case if series is None else replace(case, channels=(of_series(replace(series, rows_up=up)),))


def _told(case: Case, warnings: tuple[str, ...]) -> tuple[str, ...]:
    """Tell what people are to know of a case, and return it."""
    for warning in warnings:
        logger.warning("%s: %s", printable(case.name), warning)
    return warnings


def _told_by(odd: Sequence[Oddity], *, is_usual: bool) -> tuple[str, ...]:
    return tuple(one.told for one in odd if bool(one.in_short) == is_usual)


def _probabilities_name(case: Case) -> str:
    return f"{case.name}.npz"


def _ran_on(before: Sequence[Runner], after: Sequence[Runner]) -> tuple[RanOn, ...]:
    """Return the servers that have answered in between."""
    answers = {(runner.server, runner.model): runner.answers for runner in before}
    return tuple(
        RanOn(server=runner.server, model=runner.model, runtime=runner.runtime, relative_l2=runner.relative_l2)
        for runner in after
        if runner.answers > answers.get((runner.server, runner.model), 0)
    )


def _mixes(ran_on: Sequence[RanOn]) -> Iterator[str]:
    """Yield a warning for each model that servers with different runtimes answered for."""
    for model in dict.fromkeys(item.model for item in ran_on):
        used = [item for item in ran_on if item.model == model]
        if len({item.runtime for item in used}) > 1:
            told = "; ".join(f"{item.server}: {_runtime_of(item)}" for item in used)
            yield (
                f"{model}: servers with different runtimes, whose rounding differs, answered meanwhile ({told}): "
                "build the model alike on all of them, or name those that are"
            )


def _runtime_of(item: RanOn) -> str:
    within = "" if item.relative_l2 is None else f", within {item.relative_l2:.0e} of PyTorch"
    return f"{item.runtime or 'not known'}{within}"


def _read(case: Case, reader: Reader) -> tuple[Volume, LabelMap | None, tuple[KnownFile, ...]]:
    """Read a scan, and the labels of a previous stage where they are given, and say which bytes were read."""
    with _cannot_be_read_is_an_input_error():
        stamps = {part: stamp_of(part) for part in case.parts}
    volume = read_volume(case.channels, reader)
    previous = None if case.previous is None else read_label_map(case.previous, reader, volume)
    with _cannot_be_read_is_an_input_error():
        return volume, previous, tuple(known(part, since=stamp) for part, stamp in stamps.items())


@contextmanager
def _probability_file(path: Path, *, wanted: bool) -> Iterator[ProbabilityFile | None]:
    """Give the file for a case's probabilities, if they are wanted; what is not finished is removed."""
    if not wanted:
        yield None
        return
    file = ProbabilityFile(path)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def _cannot_be_read_is_an_input_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
