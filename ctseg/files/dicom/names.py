"""Names of the cases that DICOM series are: without a patient's name unless that is asked for."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.files.dicom.series import CtSeries, uid_digest

FOLDER = "folder"
"""Stands for the place of a series' files in the input, among the keywords of a name."""
_SHORT_NUMBER = re.compile(r"\d{1,4}")
"""A StudyID that stands in a name: longer ones may be anything, an accession number or a date of birth."""
_UNFIT = re.compile(r"[^\w.+-]+")
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, and lets no file have."""
_LONGEST = 64
"""Characters of one word, as many as UIDs and most texts of DICOM have."""
_TEXTS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "US"})
"""Value representations of which a name can be made."""


def keywords_in(case_name_from: Sequence[str]) -> tuple[str, ...]:
    """Return the DICOM keywords among the words that names are made of.

    Args:
        case_name_from: DICOM keywords, such as ``PatientID``, and :data:`FOLDER`.

    Raises:
        SetupError: A word is no keyword, or one of what is no text.
    """
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    keywords = tuple(word for word in case_name_from if word != FOLDER)
    for word in keywords:
        tag = tag_for_keyword(word) if word else None
        if tag is None or not _TEXTS & set(dictionary_VR(tag).split(" or ")):
            raise SetupError(
                f"{word}: expected DICOM keywords of texts and numbers to name cases by, such as PatientID, "
                f"AccessionNumber or SeriesDescription, or {FOLDER!r} for the place in the input",
                settings=("case_name_from",),
            )
    return keywords


def case_name(series: CtSeries, case_name_from: Sequence[str], root: Path) -> str:
    """Return the name of the case that a series is.

    Args:
        series: The series, its ``tags`` read where they are asked for.
        case_name_from: What the name is made of, see :func:`keywords_in`; none: study and series number, each with a
            digest of its UID, and the study ID where it is a short number.
        root: The input that its files lie in.

    Returns:
        A name for a file on any system: letters, digits and ``_ - . +``.
    """
    if not case_name_from:
        study = series.study_id.strip() if _SHORT_NUMBER.fullmatch(series.study_id.strip()) else ""
        number = "" if series.series_number is None else str(series.series_number)
        return f"study{study}-{uid_digest(series.study_uid)}_series{number}-{uid_digest(series.series_uid)}"
    tags = dict(series.tags)
    name = "_".join(
        _fit(_place(series, root)) if word == FOLDER else _fit(tags.get(word, "")) or f"no{word}"
        for word in case_name_from
    )
    return f"case_{name}" if DEVICE.fullmatch(name) else name


def _place(series: CtSeries, root: Path) -> str:
    """Return the folder that holds all files of a series, as its place in the input; that of the input, its name."""
    folders = {path.parent for path in series.paths}
    common = Path(os.path.commonpath(folders)) if folders else root
    return "_".join(common.relative_to(root).parts) or root.resolve().name


def _fit(text: str) -> str:
    """Return a text as part of a file's name."""
    plain = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    return _UNFIT.sub("_", plain)[:_LONGEST].strip("._-+ ")
