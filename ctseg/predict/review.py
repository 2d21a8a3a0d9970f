"""Whether a folder is done: its report folded anew, and held against the input; needs neither model nor server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.files.cases import Case, find_cases
from ctseg.files.dicom.choosing import SeriesRules
from ctseg.files.identity import printable
from ctseg.predict.ledger import is_scan_of
from ctseg.predict.model_notes import read_model_notes
from ctseg.predict.outcomes import MEMORY_NAME, Outcome, OutcomeStore, memory_at_hand
from ctseg.predict.ownership import OwnFiles
from ctseg.predict.parts import different_lists
from ctseg.predict.presence import OtherRuns
from ctseg.predict.report import Report, fold_report


@dataclass(frozen=True)
class Review:
    """What a look at an output folder found.

    Attributes:
        report: As it stands in ``report.json``.
        cases: How many were looked at.
        left: What of them is not done, by the case's name, in order: why, for people.
        kept: Likewise, of the other cases those in whose place something stands that is not ctseg's.
        working: Runs that work in the folder.
        different_lists: A sentence, where parts of the folder saw different lists of cases.
        found: Cases of the input that was looked at.
    """

    report: Report
    cases: int
    left: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    working: tuple[str, ...]
    different_lists: str | None
    found: tuple[Case, ...] = ()


def review_folder(
    output: Path,
    input_path: Path | None = None,
    *,
    channels: int | None = None,
    recursive: bool = False,
    series: SeriesRules = SeriesRules(),  # noqa: B008 (frozen)
    case_name_from: Sequence[str] = (),
) -> Review:
    """Fold the report of a folder anew, and say what is not done.

    Args:
        output: The output folder.
        input_path: A scan or a folder of scans, whose cases are looked at; None: those that have an outcome.
        channels: Of a case; None takes what the models had that worked in the folder.
        recursive: Whether scans in sub-folders of the input count.
        series: Which DICOM series of the input count, as when they were segmented.
        case_name_from: What names of DICOM cases were made of.

    Raises:
        SetupError: The folder has no memory, or models of several numbers of channels have worked in it.
        InputError: The input cannot be read, or holds no scans.
        OutputError: What the folder remembers cannot be read, or the report cannot be written.
    """
    with memory_at_hand(output):
        if not (output / MEMORY_NAME).is_dir():
            raise SetupError(f"{output}: expected a folder that ctseg has segmented into, found no {MEMORY_NAME} in it")
        others = OtherRuns(output)
        others.listen()
        cases = None
        if input_path is not None:
            channels = channels or _channels_in(output)
            cases = find_cases(
                input_path,
                channels=channels,
                recursive=recursive,
                own=OwnFiles,
                not_into=(output,),
                series=series,
                case_name_from=case_name_from,
            )
        report = fold_report(output, others)
        there = frozenset(printable(path.name) for path in output.iterdir())
        if cases is None:
            known = {case.case for case in report.cases} | {case.case for case in report.not_done}
            looked_at, left = len(known), tuple(_left_of(report, there))
        else:
            looked_at, left = len(cases), tuple(_left_of_input(cases, output, report, there))
        kept = tuple(entry for entry in _kept_in(report) if entry[0] not in dict(left))
        return Review(
            report, looked_at, left, kept, tuple(others.living()), different_lists(output), found=tuple(cases or ())
        )


def _channels_in(output: Path) -> int:
    """Return how many channels a case has; 1 where no model is known: only names of incomplete cases need more."""
    numbers = sorted({len(note.channels) for note in read_model_notes(output).values()})
    if len(numbers) > 1:
        raise SetupError(
            f"{output}: models of {' and '.join(map(str, numbers))} channels have worked in it: "
            "say how many a case of this input has",
            settings=("channels",),
        )
    return numbers[0] if numbers else 1


def _kept_in(report: Report) -> Iterator[tuple[str, str]]:
    for outcome in report.cases:
        if outcome.status == "kept":
            yield outcome.case, f"kept: {'; '.join(outcome.warnings)}"


def _left_of(report: Report, there: frozenset[str]) -> Iterator[tuple[str, str]]:
    left = {case.case: f"not done: {case.reason}" for case in report.not_done}
    failed = {outcome.case: why for outcome in report.cases if (why := _why_not_done(outcome, there))}
    yield from sorted({**failed, **left}.items())


def _left_of_input(
    cases: Sequence[Case], output: Path, report: Report, there: frozenset[str]
) -> Iterator[tuple[str, str]]:
    store = OutcomeStore(output)
    left = {case.case: f"not done: {case.reason}" for case in report.not_done}
    for case in cases:
        name, outcome = printable(case.name), store.read(case.name)
        if name in left:
            yield name, left[name]
        elif outcome is None:
            yield name, "no outcome: not begun, or cut off"
        elif why := _why_not_done(outcome, there):
            yield name, why
        elif outcome.inputs and not _is_of(outcome, case):
            yield name, "its scan is not the one that was segmented"


def _why_not_done(outcome: Outcome, there: frozenset[str]) -> str | None:
    if outcome.status == "failed":
        return "failed" if outcome.error is None else outcome.error.message.removeprefix(f"case {outcome.case}: ")
    if gone := [file.name for file in outcome.outputs if file.name not in there]:
        return f"{', '.join(gone)} has gone"
    if outcome.failed_formats:
        return "; ".join(f"failed: {failed.format}: {failed.error.message}" for failed in outcome.failed_formats)
    return None


def _is_of(outcome: Outcome, case: Case) -> bool:
    try:
        return is_scan_of(outcome, case)
    except OSError:
        return False
