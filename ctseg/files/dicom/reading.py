"""One file: whether it is DICOM, what its header says, and whether its voxels are all there."""

import errno
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from ctseg.files.dicom.elements import tag_of, text_of, uid_of, whole_number_of, words_of
from ctseg.files.dicom.frames import TAGS, CtFile, file_of
from ctseg.files.dicom.kinds import (
    COMPRESSED,
    CT,
    DEFLATED,
    DICOMDIR,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    MULTI_FRAME_CT,
    WHOLE_BITS,
    kind_of_class,
)
from ctseg.files.regular import open_regular

_PREFIX_AT, _PREFIX = 128, b"DICM"
_DATA_AT = _PREFIX_AT + len(_PREFIX)
_MOST_READ, _MOST_READ_OF_FRAMES = 1 << 22, 1 << 25
"""Bytes of a header, of one slice and of many."""
_MOST_INFLATED = 1 << 24
"""Bytes of a deflated file that are looked at."""
_MOST_FRAGMENTS = 1 << 20
"""Of compressed voxels, that are counted."""
_PADDING = 16
"""Bytes behind voxels that say nothing of their size; as many as a row has would."""
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_GROUP, _PIXEL_DATA, _PIXEL_ELEMENTS = 0x7FE0, 0x7FE00010, (0x0010, 0x0008, 0x0009)
_META_GROUP, _LAST_GROUP_OF_SERIES = 0x0002, 0x0020
_ITEM, _END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


@dataclass(frozen=True)
class OtherFile:
    """A DICOM file that is no slice of a CT, or one that cannot be read.

    Attributes:
        what: In words: a noun that is counted.
        study_uid: Empty where it cannot be told, as the next one.
        series_uid: SeriesInstanceUID.
        series_number: SeriesNumber.
        description: SeriesDescription.
        is_unread: Whether it may have been a slice of any series.
    """

    what: str
    study_uid: str = ""
    series_uid: str = ""
    series_number: int | None = None
    description: str = ""
    is_unread: bool = False


def read_file(path: Path, keywords: Sequence[str] = ()) -> CtFile | OtherFile | None:
    """Read what a file's header says; a pipe or a device is never waited for.

    Args:
        path: Of a file of any kind.
        keywords: Of tags that are kept as text.

    Returns:
        None: it is no DICOM file.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        return None if error.errno == errno.EINVAL else OtherFile("file that cannot be opened", is_unread=True)
    with file:
        try:
            start = file.read(_DATA_AT)
        except OSError:
            return OtherFile("file that cannot be opened", is_unread=True)
        if not start:
            return OtherFile("empty file", is_unread=True)
        has_prefix = start[_PREFIX_AT:] == _PREFIX
        if not has_prefix and not _is_element_of_group_2_or_8(start):
            return None
        file.seek(_DATA_AT if has_prefix else 0)
        try:
            found = _read(path, file, keywords)
        except Exception:  # whatever pydicom makes of bytes that are no DICOM
            found = None
    return found or (OtherFile("DICOM file that cannot be read", is_unread=True) if has_prefix else None)


def _read(path: Path, file: BinaryIO, keywords: Sequence[str]) -> CtFile | OtherFile | None:
    """Read a file from its first element on; None: it does not say of what class it is, or says two."""
    meta = read_dataset(_bounded(file), False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != _META_GROUP)
    said = uid_of(meta, "MediaStorageSOPClassUID")
    if said == DICOMDIR:
        return OtherFile(kind_of_class(said))
    syntax_uid = uid_of(meta, "TransferSyntaxUID") or _guessed_syntax(file)
    voxels = _Voxels(_inflated(file) if syntax_uid == DEFLATED else file)
    is_other = said != "" and not _is_ct(said)
    dataset = read_dataset(
        _bounded(voxels.file, is_multi_frame=said in MULTI_FRAME_CT),
        syntax_uid == IMPLICIT_LITTLE_ENDIAN,
        syntax_uid != EXPLICIT_BIG_ENDIAN,
        stop_when=_is_past_series if is_other else voxels.begin,
        specific_tags=_tags((*TAGS, *keywords)),
    )
    sop_class_uid = uid_of(dataset, "SOPClassUID") or said
    if not sop_class_uid or (is_other and _is_ct(sop_class_uid)):
        return None
    if not _is_ct(sop_class_uid):
        return _other(dataset, kind_of_class(sop_class_uid))
    if "LOCALIZER" in words_of(dataset, "ImageType"):
        return _other(dataset, "localizer")
    if not (uid_of(dataset, "StudyInstanceUID") and uid_of(dataset, "SeriesInstanceUID")):
        return replace(_other(dataset, "CT image that does not say to which series it belongs"), is_unread=True)
    found = file_of(path, dataset, meta, syntax_uid, keywords)
    return replace(
        found, damage=found.damage or voxels.damage(found), voxels_at=0 if syntax_uid == DEFLATED else voxels.at
    )


def _is_past_series(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Whether an element lies behind those that say what series an object belongs to, and is of any length."""
    return tag >> 16 > _LAST_GROUP_OF_SERIES


def _bounded(file: BinaryIO, *, is_multi_frame: bool = False) -> BinaryIO:
    return cast(BinaryIO, _Bounded(file, _MOST_READ_OF_FRAMES if is_multi_frame else _MOST_READ))


class _Bounded:
    """A file that ends when much more of it was read than a header has; what is skipped does not count."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._read = file.read
        self._left = most
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer where the file ends."""
        data = self._read(min(size, self._left))
        self._left -= len(data)
        return data


def _is_ct(sop_class_uid: str) -> bool:
    return sop_class_uid == CT or sop_class_uid in MULTI_FRAME_CT


@cache
def _tags(keywords: Sequence[str]) -> list[BaseTag | int]:
    return [tag for keyword in keywords if (tag := tag_of(keyword)) is not None]


def _is_element_of_group_2_or_8(start: bytes) -> bool:
    """Whether bytes may be the first element of a file without preamble: a short one, little endian."""
    if len(start) < 16 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[2:4] > b"\x18\x00":
        return False
    return start[4:6] in _VRS or start[6:8] == b"\x00\x00"


def _guessed_syntax(file: BinaryIO) -> str:
    """Return the transfer syntax of a file that does not say it, from its first element."""
    element = file.read(6)
    file.seek(-len(element), io.SEEK_CUR)
    return EXPLICIT_LITTLE_ENDIAN if element[4:] in _VRS else IMPLICIT_LITTLE_ENDIAN


def _inflated(file: BinaryIO) -> BinaryIO:
    """Return what is deflated behind a file's meta information; pydicom would inflate it without bounds."""
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    return io.BytesIO(inflating.decompress(file.read(_MOST_INFLATED), _MOST_INFLATED))


def _other(dataset: Dataset, what: str) -> OtherFile:
    return OtherFile(
        what,
        uid_of(dataset, "StudyInstanceUID"),
        uid_of(dataset, "SeriesInstanceUID"),
        whole_number_of(dataset, "SeriesNumber"),
        text_of(dataset, "SeriesDescription"),
    )


class _Voxels:
    """The element of a file that holds its voxels.

    Attributes:
        file: The file, inflated where it was deflated.
        at: Where its value begins in the file; 0 until it was found.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._tag = 0
        self._length = 0
        self.at = 0

    def begin(self, tag: BaseTag, _vr: str | None, length: int) -> bool:
        """Whether an element is this one; it is then taken down."""
        if tag >> 16 != _PIXEL_GROUP or tag & 0xFFFF not in _PIXEL_ELEMENTS:
            return False
        self._tag, self._length, self.at = tag, length, self.file.tell()
        return True

    def damage(self, found: CtFile) -> str | None:
        """Return what is wrong with the voxels, in words; None: nothing is known."""
        if not self._tag:
            return "ended before the voxels: copy again what was cut off"
        if self._tag != _PIXEL_DATA:
            return "numbers with a fraction (FloatPixelData), which is no CT"
        size = self.file.seek(0, io.SEEK_END)
        if found.transfer_syntax_uid == DEFLATED and size == _MOST_INFLATED:
            return None
        if self._length == _UNDEFINED_LENGTH:
            if found.transfer_syntax_uid not in COMPRESSED:
                return "compressed voxels under a TransferSyntaxUID that says they are not: export the series again"
            whole = self._has_all_fragments(size, len(found.frames))
            return None if whole else "cut off in the middle of the compressed voxels: copy them again"
        if found.transfer_syntax_uid in COMPRESSED:
            return None
        expected = found.rows * found.columns * found.samples * ((found.bits[0] or 0) // 8) * len(found.frames)
        there = min(self._length, size - self.at)
        if there < expected:
            return f"cut off ({there} of {expected} bytes of voxels are there): copy them again"
        row = expected // max(1, found.rows * len(found.frames))
        if row and found.bits[0] in WHOLE_BITS and there - expected >= max(_PADDING, row):
            return f"{there} bytes of voxels, where Rows, Columns and BitsAllocated say {expected}: export them again"
        return None

    def _has_all_fragments(self, size: int, frames: int) -> bool:
        """Whether compressed voxels end as they should, with at least a fragment for each frame."""
        at, count = self.at, -1  # the first item is the table of offsets
        while at + 8 <= size and count < _MOST_FRAGMENTS:
            self.file.seek(at)
            head = self.file.read(8)
            if head[:4] == _END_OF_ITEMS:
                return count >= frames
            if head[:4] != _ITEM:
                return False
            at += 8 + int.from_bytes(head[4:], "little")
            count += 1
        return at <= size and count >= frames
