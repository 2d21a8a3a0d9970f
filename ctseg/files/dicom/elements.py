"""Values of DICOM elements, whatever stands in them: a value of another kind or form than expected is none.

They are taken from the raw bytes: pydicom's own conversion raises, or warns, with what stands in the tag.
"""

import math
from collections.abc import Sequence
from functools import cache

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag

_LONGEST_TEXT = 1024
"""Characters of a text that are kept; the standard allows 64 of those that are read here."""
_LONGEST_UID = 64
_LARGEST_IS = 2**31


@cache
def tag_of(keyword: str) -> BaseTag | None:
    """Return the tag of a keyword; None: there is no such keyword."""
    number = tag_for_keyword(keyword)
    return None if number is None else BaseTag(number)


def text_of(dataset: Dataset, keyword: str) -> str:
    """Return a text in the data set's own character set, its values joined by a backslash; empty: there is none."""
    tag = tag_of(keyword)
    if tag is None or tag not in dataset:
        return ""
    try:
        value = dataset[tag].value
    except Exception:  # whatever pydicom makes of what stands there
        return plain_of(dataset, keyword)
    if value is None or isinstance(value, bytes | Items):
        return ""
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    return text.strip(" \0")[:_LONGEST_TEXT]


def plain_of(dataset: Dataset, keyword: str) -> str:
    """Return a text without a look at its character set; empty: there is none."""
    element = _element(dataset, keyword)
    value = getattr(element, "value", None)
    if isinstance(element, RawDataElement):
        return value[:_LONGEST_TEXT].decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value).strip(" \0")


def words_of(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the values of a coded text, in upper case."""
    return tuple(word.strip().upper() for word in plain_of(dataset, keyword).split("\\"))


def uid_of(dataset: Dataset, keyword: str) -> str:
    """Return a UID; empty: there is none, or what stands there is longer than one can be."""
    uid = plain_of(dataset, keyword)
    return uid if len(uid) <= _LONGEST_UID else ""


def numbers_of(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return decimal numbers, all of them finite; None: there are not as many, or they are none."""
    parts = plain_of(dataset, keyword).split("\\")
    numbers = [_number(part) for part in parts]
    found = tuple(number for number in numbers if number is not None)
    return found if len(found) == len(parts) == count else None


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """Return one decimal number; None: what stands there is none."""
    numbers = numbers_of(dataset, keyword, 1)
    return None if numbers is None else numbers[0]


def whole_number_of(dataset: Dataset, keyword: str) -> int | None:
    """Return a whole number that stands there as text (IS); None: what stands there is none."""
    number = number_of(dataset, keyword)
    return int(number) if number is not None and abs(number) < _LARGEST_IS and number.is_integer() else None


def unsigned_of(dataset: Dataset, keyword: str) -> int | None:
    """Return a number of two bytes (US); None: what stands there is none."""
    element = _element(dataset, keyword)
    if not isinstance(element, RawDataElement):
        value = getattr(element, "value", None)
        return value if isinstance(value, int) else None
    if not element.value or len(element.value) != 2 or element.VR not in (None, "US", "SS", "UN"):
        return None
    return int.from_bytes(element.value, "little" if element.is_little_endian else "big")


def items_of(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence; none where it is missing, or is no sequence."""
    tag = tag_of(keyword)
    try:
        value = None if tag is None or tag not in dataset else dataset[tag].value
        return value if isinstance(value, Items) else []
    except Exception:  # whatever pydicom makes of what stands there
        return []


def holds(dataset: Dataset, keyword: str) -> bool:
    """Whether an element is there, whatever stands in it."""
    return _element(dataset, keyword) is not None


def _element(dataset: Dataset, keyword: str) -> object:
    tag = tag_of(keyword)
    try:
        return None if tag is None else dataset.get_item(tag)
    except KeyError:
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text.strip(" \0"))
    except ValueError:
        return None
    return number if math.isfinite(number) and text.isascii() and "_" not in text else None
