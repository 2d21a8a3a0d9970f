"""One file: whether it is DICOM, what its header says, and whether its voxels are all there."""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from ctseg.files.dicom.elements import text_of, uid_of, whole_number_of, words_of
from ctseg.files.dicom.frames import TAGS, CtFile, file_of
from ctseg.files.dicom.kinds import (
    COMPRESSED,
    CT,
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    MULTI_FRAME_CT,
    kind_of_class,
)
from ctseg.files.regular import open_regular

_PREFIX_AT, _PREFIX = 128, b"DICM"
_DATA_AT = _PREFIX_AT + len(_PREFIX)
_MOST_INFLATED = 1 << 28
"""Bytes of a deflated file that are looked at."""
_MOST_FRAGMENTS = 1 << 20
"""Of compressed voxels, that are counted."""
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_DATA, _OTHER_PIXEL_DATA = 0x7FE00010, (0x7FE00008, 0x7FE00009)
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
    """

    what: str
    study_uid: str = ""
    series_uid: str = ""
    series_number: int | None = None
    description: str = ""


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
    except OSError:
        return OtherFile("file that cannot be opened") if path.is_symlink() or path.is_file() else None
    with file:
        try:
            start = file.read(_DATA_AT)
        except OSError:
            return OtherFile("file that cannot be opened")
        if not start:
            return OtherFile("empty file")
        has_prefix = start[_PREFIX_AT:] == _PREFIX
        if not has_prefix and not _is_element_of_group_2_or_8(start):
            return None
        file.seek(_DATA_AT if has_prefix else 0)
        try:
            found = _read(path, file, keywords)
        except Exception:  # whatever pydicom makes of bytes that are no DICOM
            found = None
    return found or (OtherFile("DICOM file that cannot be read") if has_prefix else None)


def _read(path: Path, file: BinaryIO, keywords: Sequence[str]) -> CtFile | OtherFile | None:
    """Read a file from its first element on; None: it does not say of what class it is."""
    meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    syntax_uid = uid_of(meta, "TransferSyntaxUID") or _guessed_syntax(file)
    source = _inflated(file) if syntax_uid == DEFLATED else file
    voxels = _Voxels(source)
    tags = [tag for keyword in (*TAGS, *keywords) if (tag := tag_for_keyword(keyword)) is not None]
    dataset = read_dataset(
        source,
        syntax_uid == IMPLICIT_LITTLE_ENDIAN,
        syntax_uid != EXPLICIT_BIG_ENDIAN,
        stop_when=voxels.begin,
        specific_tags=list(tags),
    )
    sop_class_uid = uid_of(dataset, "SOPClassUID") or uid_of(meta, "MediaStorageSOPClassUID")
    if not sop_class_uid:
        return None
    if sop_class_uid != CT and sop_class_uid not in MULTI_FRAME_CT:
        return _other(dataset, kind_of_class(sop_class_uid))
    if "LOCALIZER" in words_of(dataset, "ImageType"):
        return _other(dataset, "localizer")
    if not (uid_of(dataset, "StudyInstanceUID") and uid_of(dataset, "SeriesInstanceUID")):
        return _other(dataset, "CT image that does not say to which series it belongs")
    found = file_of(path, dataset, meta, syntax_uid, keywords)
    return replace(
        found, damage=found.damage or voxels.damage(found), voxels_at=0 if syntax_uid == DEFLATED else voxels.at
    )


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
        at: Where its value begins in the file; 0 until it was found.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tag = 0
        self._length = 0
        self.at = 0

    def begin(self, tag: BaseTag, _vr: str | None, length: int) -> bool:
        """Whether an element is this one; it is then taken down."""
        if tag != _PIXEL_DATA and tag not in _OTHER_PIXEL_DATA:
            return False
        self._tag, self._length, self.at = tag, length, self._file.tell()
        return True

    def damage(self, found: CtFile) -> str | None:
        """Return what is wrong with the voxels, in words; None: nothing is known."""
        if not self._tag:
            return "ended before the voxels: copy again what was cut off"
        if self._tag != _PIXEL_DATA:
            return "numbers with a fraction (FloatPixelData), which is no CT"
        size = self._file.seek(0, io.SEEK_END)
        if self._length == _UNDEFINED_LENGTH:
            if found.transfer_syntax_uid not in COMPRESSED:
                return "compressed voxels under a TransferSyntaxUID that says they are not: export the series again"
            whole = self._has_all_fragments(size, len(found.frames))
            return None if whole else "cut off in the middle of the compressed voxels: copy them again"
        if found.transfer_syntax_uid in COMPRESSED:
            return None
        expected = found.rows * found.columns * found.samples * ((found.bits[0] or 0) // 8) * len(found.frames)
        there = min(self._length, size - self.at)
        told = f"cut off ({there} of {expected} bytes of voxels are there): copy them again"
        return told if there < expected else None

    def _has_all_fragments(self, size: int, frames: int) -> bool:
        """Whether compressed voxels end as they should, with at least a fragment for each frame."""
        at, count = self.at, -1  # the first item is the table of offsets
        while at + 8 <= size and count < _MOST_FRAGMENTS:
            self._file.seek(at)
            head = self._file.read(8)
            if head[:4] == _END_OF_ITEMS:
                return count >= frames
            if head[:4] != _ITEM:
                return False
            at += 8 + int.from_bytes(head[4:], "little")
            count += 1
        return at <= size and count >= frames
