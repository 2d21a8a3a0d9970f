"""Which CT series a PACS has (QIDO-RS)."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ctseg.errors import PacsAwayError, PacsError
from ctseg.files.dicom.series import series_label
from ctseg.pacs.session import PacsRefusedError, PacsSession

log = logging.getLogger(__name__)

_MODALITY, _STUDY, _SERIES, SOP_INSTANCE = "00080060", "0020000D", "0020000E", "00080018"
_NUMBER, _DESCRIPTION, _INSTANCES = "00200011", "0008103E", "00201209"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64
PAGE = 200
"""Items that are asked for at once."""
_NO_SEARCH = frozenset({400, 404, 405, 406, 501})
"""What an address says that has no search, or is not DICOMweb's."""
_MOST_SERIES = 100_000
_MOST_NUMBER = 1 << 31
"""Integer strings are no larger."""
_MOST_INSTANCES = 20_000
"""Of one series."""


@dataclass(frozen=True)
class PacsSeries:
    """A series as a PACS describes it.

    Attributes:
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        number: SeriesNumber.
        description: SeriesDescription; free text, which may name a patient: it stands in no message and no log.
        instances: How many there are; None: the PACS does not say.
    """

    study_uid: str
    series_uid: str
    number: int | None = None
    description: str = ""
    instances: int | None = None

    @property
    def path(self) -> str:
        """Below the root of the PACS."""
        return f"/studies/{self.study_uid}/series/{self.series_uid}"

    @property
    def label(self) -> str:
        """What messages call it: no patient, and as they call it once it is fetched."""
        return series_label(self.number, self.series_uid, self.study_uid)


def find_series(session: PacsSession, study_date: str, *, modality: str = "CT", page: int = PAGE) -> list[PacsSeries]:
    """Find the series of studies by their date, page by page.

    Args:
        session: Asks the PACS.
        study_date: As DICOM matches it: ``YYYYMMDD``, or a range of two with a hyphen, one of which may be missing.
        modality: Of the series; SEG, RTSTRUCT and SR are others, so that no result is found.
        page: How many are asked for at once.

    Returns:
        Each once, in order of the PACS.

    Raises:
        PacsError: The PACS is away, refuses, or answers nonsense.
    """
    query = {
        "Modality": modality,
        "StudyDate": study_date,
        "includefield": [_NUMBER, _DESCRIPTION, _INSTANCES],
    }
    found: dict[tuple[str, str], PacsSeries] = {}
    try:
        for item in _pages(session, "the search for series", "/series", query, _SERIES, most=_MOST_SERIES, page=page):
            if (series := _series(item, modality)) is not None:
                found[series.study_uid, series.series_uid] = series
    except PacsAwayError:
        raise
    except PacsError as error:
        if isinstance(error, PacsRefusedError) and error.status not in _NO_SEARCH:
            raise
        raise PacsError(
            f"{error}: expected the root of a DICOMweb that searches for series over all studies",
            settings=("dicomweb",),
        ) from error
    return list(found.values())


def instances_of(session: PacsSession, series: PacsSeries, *, page: int = PAGE) -> frozenset[str]:
    """Return the SOPInstanceUIDs of a series, page by page.

    Raises:
        PacsError: The PACS is away, refuses, or answers nonsense.
    """
    query = {"includefield": [SOP_INSTANCE]}
    path = f"{series.path}/instances"
    found = _pages(session, "the search for instances", path, query, SOP_INSTANCE, most=_MOST_INSTANCES, page=page)
    return frozenset(uid for item in found if (uid := uid_in(item, SOP_INSTANCE)) is not None)


def uid_in(item: Mapping[str, Any], tag: str) -> str | None:
    """Return a UID in an answer; None: there is none, or something that is no UID and would be part of an address."""
    value = value_in(item, tag)
    return value if isinstance(value, str) and len(value) <= _LONGEST_UID and _UID.fullmatch(value) else None


def value_in(item: Any, tag: str) -> Any:
    """Return the first value of an attribute in an answer; None: there is none."""
    attribute = item.get(tag) if isinstance(item, Mapping) else None
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return values[0] if isinstance(values, list) and values else None


def _pages(
    session: PacsSession, what: str, path: str, query: Mapping[str, Any], key: str, *, most: int, page: int
) -> Iterator[Mapping[str, Any]]:
    """Yield the items of all pages, until one brings nothing new: a PACS may have smaller ones, or know none."""
    seen: set[str] = set()
    offset = 0
    while True:
        items = session.json(what, path, {**query, "limit": page, "offset": offset})
        if items is None:
            return
        if not isinstance(items, list):
            raise PacsError(f"{session.options.shown}: {what}: the answer is no list")
        new = 0
        for item in items:
            uid = uid_in(item, key) if isinstance(item, Mapping) else None
            if uid is not None and uid not in seen:
                seen.add(uid)
                new += 1
                yield item
        offset += len(items)
        if not new:
            return
        if len(seen) > most:
            raise PacsError(f"{session.options.shown}: {what}: more than {most}", settings=("study_date",))


def _series(item: Mapping[str, Any], modality: str) -> PacsSeries | None:
    study, series = uid_in(item, _STUDY), uid_in(item, _SERIES)
    said = value_in(item, _MODALITY)
    if study is None or series is None or said not in (None, modality):
        return None
    description = value_in(item, _DESCRIPTION)
    return PacsSeries(
        study,
        series,
        _whole_number(value_in(item, _NUMBER)),
        description if isinstance(description, str) else "",
        _whole_number(value_in(item, _INSTANCES)),
    )


def _whole_number(value: Any) -> int | None:
    """Return an integer string's value, which some write as a number and some as text."""
    try:
        number = int(value) if isinstance(value, int | str) else None
    except ValueError:
        return None
    return number if number is not None and abs(number) < _MOST_NUMBER else None


def has_instances(session: PacsSession, series: PacsSeries, sop_instance_uid: str | None = None) -> bool:
    """Return whether a PACS has any instance of a series, or the one that is named.

    Raises:
        PacsError: The PACS is away, refuses, or answers nonsense.
    """
    query = {"limit": 1, "offset": 0, **({} if sop_instance_uid is None else {"SOPInstanceUID": sop_instance_uid})}
    try:
        return bool(session.json("the search for instances", f"{series.path}/instances", query))
    except PacsRefusedError as error:
        if error.status == 404:  # some answer so where nothing is found
            return False
        raise
