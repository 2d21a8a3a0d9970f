"""The CT series of an input: which of them are cases, what these are called, and what was left out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import InputError, missing_package
from ctseg.files.dicom.choosing import Rule, SeriesRules
from ctseg.files.dicom.names import case_name, keywords_in
from ctseg.files.dicom.series import CtSeries, FoundDicom, LeftOut

_PACKAGES = ("pydicom", "highdicom", "SimpleITK")


@dataclass(frozen=True)
class SeriesOfInput:
    """A CT series, and the case that it is.

    Attributes:
        name: Of the case.
        series: The series.
        not_chosen: The rule that it does not fit; None: it is a case.
    """

    name: str
    series: CtSeries
    not_chosen: Rule | None = None


@dataclass(frozen=True)
class DicomOfInput:
    """What an input holds of DICOM.

    Attributes:
        series: CT series, those that cannot be read too, in order of study, number and UID.
        left_out: What is no CT, doubled, or cannot be read.
        others: Files that only began like DICOM.
    """

    series: tuple[SeriesOfInput, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    others: tuple[Path, ...] = ()

    @property
    def chosen(self) -> tuple[SeriesOfInput, ...]:
        """Those that are cases."""
        return tuple(item for item in self.series if item.not_chosen is None)

    @property
    def left_out_told(self) -> str:
        """What is no CT series, counted by kind; empty: nothing."""
        return FoundDicom(left_out=self.left_out).told

    @property
    def not_chosen_told(self) -> str:
        """How many series the rules leave out, by the rule; empty: none."""
        counts = Counter(item.not_chosen for item in self.series if item.not_chosen is not None)
        if not counts:
            return ""
        by_rule = ", ".join(f"{count} by {rule}" for rule, count in sorted(counts.items()))
        return f"{counts.total()} series not chosen ({by_rule})"


def dicom_of_input(
    files: Sequence[Path], root: Path, rules: SeriesRules, case_name_from: Sequence[str]
) -> DicomOfInput:
    """Read headers, and say which series are there and which of them are cases.

    Args:
        files: That begin like DICOM.
        root: The input in which they lie.
        rules: Which series are taken.
        case_name_from: What names of cases are made of, see :func:`ctseg.files.dicom.names.keywords_in`.

    Raises:
        SetupError: A package is missing, or a name cannot be made of what was asked for.
    """
    try:
        from ctseg.files.dicom.headers import find_series

        keywords = keywords_in(case_name_from)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _PACKAGES:
            raise
        raise missing_package("pydicom", needed_for="reading DICOM", extra="dicom") from error
    found = find_series(files, keywords=keywords)
    series = tuple(
        SeriesOfInput(case_name(item, case_name_from, root), item, rules.against(item)) for item in found.series
    )
    return DicomOfInput(series, found.left_out, found.others)


def series_of_file(file: Path, beside: Sequence[Path], case_name_from: Sequence[str]) -> DicomOfInput:
    """Return the series of one file in its folder: of many slices, one stands for all.

    Args:
        file: The file.
        beside: The files in its folder that begin like DICOM, it among them.
        case_name_from: See :func:`dicom_of_input`.

    Raises:
        InputError: It is no slice of a CT series.
        SetupError: See :func:`dicom_of_input`.
    """
    alone = dicom_of_input([file], file.parent, SeriesRules(), ())
    if not alone.series:
        raise InputError(
            f"expected a DICOM file of a CT series, found {alone.left_out_told or 'a file of another kind'}"
        )
    wanted = _key(alone.series[0].series)
    found = dicom_of_input(beside, file.parent, SeriesRules(), case_name_from)
    return DicomOfInput(tuple(item for item in found.series if _key(item.series) == wanted))


def _key(series: CtSeries) -> tuple[str, str]:
    return series.study_uid, series.series_uid
