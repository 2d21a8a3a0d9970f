"""One case from its files to new files in the run's own folder, from where they are put in place."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path

from ctseg.arrays import LabelMap
from ctseg.errors import InputError
from ctseg.files.atomic import longest_name
from ctseg.files.cases import Case
from ctseg.files.formats import with_companions
from ctseg.files.identity import KnownFile, known, printable, stamp_of
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import Volume, read_label_map, read_volume, read_volume_header, write_label_map
from ctseg.model_spec import Reader
from ctseg.numerics.volumes import volumes_ml
from ctseg.predict.ledger import Staged
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import MadeBy, Outcome, RanOn
from ctseg.predict.predictor import Runner
from ctseg.predict.progress import Progress, StageClock
from ctseg.predict.segment import CaseContext
from ctseg.predict.segmenter import CaseSegmenter


class CaseStager:
    """Segments cases into the run's own folder, on any number of threads.

    Args:
        segmenter: Segments them.
        scratch: The run's own folder.
        options: How they are segmented.
        budget: Memory that they share.
        progress: Told of each.
        made_by: What stands in their outcomes.
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

    def stage(self, case: Case, index: int, is_over: Callable[[], bool]) -> Staged:
        """Read, segment and write one case into the run's own folder, once there is memory for it.

        Args:
            case: The case.
            index: Of the case among all; smaller goes first on the network.
            is_over: Whether nothing more is to begin, asked once there is memory.

        Raises:
            InputError: The scan cannot be segmented.
            OutputError: It cannot be written.
            ServerError: The network gave no answer.
            CancelledError: It is over.
        """
        if case.problem is not None:
            raise InputError(case.problem)
        _check_lengths(self.wanted(case), self._scratch)
        contract, saves_probabilities = self._segmenter.contract, self._options.save_probabilities
        clock = StageClock(case.name, self._progress)
        label_path, probabilities_path = (self._scratch / name for name in self.names(case))
        files = {label_path.name: label_path}
        with (
            self._memory_for(case, clock),
            _probability_file(probabilities_path, wanted=saves_probabilities) as probabilities,
        ):
            if is_over():
                raise CancelledError
            with clock.stage("read"):
                volume, previous, inputs = _read(case, contract.reader)
            before = self._segmenter.identity.runners
            result = self._segmenter.segment(volume, CaseContext(index, clock, probabilities, previous))
            ran_on = _ran_on(before, self._segmenter.identity.runners)
            del previous
            with clock.stage("write"):
                write_label_map(label_path, result.labels, volume)
                if probabilities is not None:
                    probabilities.commit()
                    files[probabilities_path.name] = probabilities_path
        return Staged(Outcome(
            case=printable(case.name), status="ok", made_by=self._made_by, inputs=inputs,
            volumes_ml=volumes_ml(result.labels, contract.labels, volume.geometry.spacing_mm), seconds=clock.seconds,
            windows=result.windows, bytes_sent=result.bytes_sent, bytes_received=result.bytes_received,
            warnings=(*result.warnings, *_mixes(ran_on)), ran_on=ran_on,
            server_seconds=result.server_seconds,
        ), files)  # fmt: skip

    def wanted(self, case: Case) -> tuple[str, ...]:
        """Return the names of the files that are to be written."""
        return self.names(case)[: 2 if self._options.save_probabilities else 1]

    def names(self, case: Case) -> tuple[str, str]:
        """Return the names that files of the case have: the label map's, and that of probabilities."""
        return f"{case.name}{self._segmenter.contract.file_ending}", f"{case.name}.npz"

    def clear(self, case: Case) -> None:
        """Remove what lies of the case in the run's own folder."""
        for name in self.names(case):
            with suppress(OSError):
                (self._scratch / name).unlink(missing_ok=True)

    @contextmanager
    def _memory_for(self, case: Case, clock: StageClock) -> Iterator[None]:
        """Wait until the memory is there that a case will take by its headers, and hold it meanwhile."""
        with clock.stage("read"):
            header = read_volume_header(case.channels, self._segmenter.contract.reader)
        estimate = self._segmenter.estimate(header, saves_probabilities=self._options.save_probabilities)
        with self._budget.reserved(estimate, printable(case.name)):
            yield


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
            told = "; ".join(f"{item.server}: {_told(item)}" for item in used)
            yield (
                f"{model}: servers with different runtimes, whose rounding differs, answered meanwhile ({told}): "
                "build the model alike on all of them, or name those that are"
            )


def _told(item: RanOn) -> str:
    within = "" if item.relative_l2 is None else f", within {item.relative_l2:.0e} of PyTorch"
    return f"{item.runtime or 'not known'}{within}"


def _read(case: Case, reader: Reader) -> tuple[Volume, LabelMap | None, tuple[KnownFile, ...]]:
    """Read a scan, and the labels of a previous stage where they are given, and say which bytes were read."""
    with _cannot_be_read_is_an_input_error():
        stamps = {path: stamp_of(path) for path in with_companions(case.paths)}
    volume = read_volume(case.channels, reader)
    previous = None if case.previous is None else read_label_map(case.previous, reader, volume)
    with _cannot_be_read_is_an_input_error():
        return volume, previous, tuple(known(path, since=stamp) for path, stamp in stamps.items())


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


def _check_lengths(names: Iterable[str], folder: Path) -> None:
    """Refuse names that the file system of a folder does not take."""
    longest = longest_name(folder)
    for name in names:
        if (size := len(os.fsencode(name))) > longest:
            raise InputError(
                f"its {Path(name).suffix} file would have a name of {size} bytes, and the output folder takes {longest}"
                ": give the scan a shorter name"
            )


@contextmanager
def _cannot_be_read_is_an_input_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
