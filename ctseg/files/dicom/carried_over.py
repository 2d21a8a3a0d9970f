"""What our objects carry over from the images that they are about: who and which study, in valid values only."""

import re
import unicodedata
from datetime import date
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

CHARACTER_SET = "ISO_IR 192"
"""Of all that is written: UTF-8, whatever the images have."""
_PATIENT_AND_STUDY = {
    "PatientName": True,
    "PatientID": True,
    "IssuerOfPatientID": False,
    "PatientBirthDate": True,
    "PatientSex": True,
    "PatientAge": False,
    "StudyDate": True,
    "StudyTime": True,
    "StudyID": True,
    "AccessionNumber": True,
    "ReferringPhysicianName": True,
    "StudyDescription": False,
}
"""By keyword; whether it has to be there, be it empty."""
_LONGEST = {"LO": 64, "SH": 16, "PN": 64, "CS": 16}
_NAME_GROUPS, _NAME_PARTS = 3, 5
_FORMS = {
    "AS": re.compile(r"\d{3}[DWMY]"),
    "CS": re.compile(r"[A-Z0-9 _]{1,16}"),
    "DS": re.compile(r"(?=.{1,16}$)[+-]?\d+(\.\d+)?([eE][+-]?\d+)?"),
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
    "UI": re.compile(r"[0-9.]{1,64}"),
}
_OLD_FORMS = {
    "DA": (re.compile(r"(\d{4})\.(\d\d)\.(\d\d)"), r"\1\2\3"),
    "TM": (re.compile(r"(\d\d):(\d\d):(\d\d)"), r"\1\2\3"),
}
"""Of ACR-NEMA's dates and times, which PS3.5 has readers take, and how they are written today."""
_SEXES = ("M", "F", "O")
_NO_MOMENT = ("19000101", "000000")
"""Of images that do not say when they were made: content needs a date and a time."""


def patient_and_study(header: Dataset) -> Dataset:
    """Return what says whose the images are, and of which study, without its UID.

    Values that are too long are cut; those that are no dates, times or codes are left empty.

    Args:
        header: Of one of the images.
    """
    kept = Dataset()
    for keyword, is_needed in _PATIENT_AND_STUDY.items():
        value = valid_value(header, keyword)
        if keyword == "PatientSex" and value not in _SEXES:
            value = ""
        if value or is_needed:
            setattr(kept, keyword, value)
    return kept


def content_moment(header: Dataset) -> tuple[str, str]:
    """Return the date (DA) and time (TM) of the images' content, which ours takes over: it is made anew equal."""
    for of in ("Content", "Acquisition", "Series", "Study"):
        if day := valid_value(header, f"{of}Date"):
            return day, valid_value(header, f"{of}Time") or _NO_MOMENT[1]
    return _NO_MOMENT


def valid_value(header: Dataset, keyword: str) -> str:
    """Return a text of a header as it may be written; empty: there is none that may."""
    try:
        value = header.get(keyword)
    except Exception:  # whatever pydicom makes of a malformed element
        return ""
    return "" if value is None else valid_text(value, dictionary_VR(keyword))


def valid_text(value: Any, vr: str) -> str:
    """Return a text as a value representation takes it: cut where it is too long, empty where its form is wrong.

    Spaces within it stay, however many: identifiers may differ by them.
    """
    if isinstance(value, MultiValue) and vr in _FORMS:
        return ""
    raw = " ".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    text = "".join(c if _is_printed(c) else " " for c in raw).replace("\\", " ").strip(" ")
    if vr == "PN":
        groups = ["^".join(group.split("^")[:_NAME_PARTS])[: _LONGEST[vr]].strip(" ") for group in text.split("=")]
        return "=".join(groups[:_NAME_GROUPS]).rstrip("=")
    if vr in _OLD_FORMS:
        text = _OLD_FORMS[vr][0].sub(_OLD_FORMS[vr][1], text)
    if vr in _FORMS:
        return text if _FORMS[vr].fullmatch(text) and (vr != "DA" or _is_day(text)) else ""
    return text[: _LONGEST.get(vr)].rstrip(" ")


def is_uid(value: str) -> bool:
    """Return whether a text can stand where a UID is."""
    return _FORMS["UI"].fullmatch(value) is not None


def _is_day(text: str) -> bool:
    try:
        date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:  # 30 February, or the year 0
        return False
    return True


def _is_printed(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
