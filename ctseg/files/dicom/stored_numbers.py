"""The numbers that a DICOM file stores for its slices, before slope and intercept."""

import threading
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_preamble
from pydicom.fileutil import read_undefined_length_value
from pydicom.tag import BaseTag, SequenceDelimiterTag, Tag

from ctseg.files.dicom.codecs import CodecError, StoredForm, decoded
from ctseg.files.dicom.elements import uid_of, unsigned_of, whole_number_of
from ctseg.files.dicom.kinds import DEFLATED, EXPLICIT_BIG_ENDIAN, IMPLICIT_LITTLE_ENDIAN, RLE, UNCOMPRESSED, WHOLE_BITS
from ctseg.files.regular import open_regular

START_BYTES = 1 << 16
"""Of a file, that are read first; most headers are shorter."""
DEFLATED_HEADER_BYTES = 4 << 20
"""What a deflated file may hold beside its voxels."""

CHANGED = "the series was changed after its headers were read, begin again when nobody writes it any more"
"""What to do about a file that is not the one whose headers were read."""

_CUT_OFF = "it was cut off, copy the series again"
_ODD = "convert the series, such as with dcmconv, or take it from where it comes from again"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_DATA = Tag("PixelData")
_NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_ENDS = frozenset((Tag("FloatPixelData"), Tag("DoubleFloatPixelData"), _PIXEL_DATA))
_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        "SOPInstanceUID", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "SamplesPerPixel",
        "NumberOfFrames", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", *_NUMBERS,
    )
]  # fmt: skip


class FrameError(Exception):
    """A file does not give the numbers of a slice.

    Args:
        expected: In words, nothing of which stands in the file's texts.
        found: Likewise.
        todo: What to do.
    """

    def __init__(self, expected: str, found: str, todo: str = _CUT_OFF) -> None:
        super().__init__(f"expected {expected}, found {found}: {todo}")


class FrameFile:
    """An open DICOM file, whose frames are read one by one, from any thread.

    Args:
        path: The file.
        syntax: Its transfer syntax UID, one of :mod:`ctseg.files.dicom.kinds`' that are read.
        voxel_bytes: What all its voxels take at most; bounds what a deflated file is inflated to.

    Attributes:
        header: What it says of itself.
        sop_instance_uid: Its SOPInstanceUID.
        form: How the numbers of each slice are stored.
        frames: How many slices it holds.

    Raises:
        OSError: It cannot be opened, or is no file.
        FrameError: It is cut off, or does not say how its voxels are stored.
    """

    def __init__(self, path: Path, syntax: str, voxel_bytes: int) -> None:
        self._syntax = syntax
        self._lock = threading.Lock()
        self._file: BinaryIO = open_regular(path)
        try:
            self.header, self._start, self._length = self._read_header(voxel_bytes)
            self.form, self.frames = self._form_and_frames()
            self._encoded = None if syntax in UNCOMPRESSED else self._read_encoded()
        except (FrameError, OSError, MemoryError):
            self.close()
            raise
        except Exception:  # whatever pydicom raises where bytes are no DICOM; its words quote tags
            self.close()
            raise FrameError("a DICOM file", "one that cannot be parsed") from None

    def __enter__(self) -> "FrameFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def stored(self, frame: int, scratch: Path, memory: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Read one slice.

        Args:
            frame: From 0.
            scratch: Where a file may be put while a compressed slice is decoded; not there yet.
            memory: (rows, columns), integers: used where the numbers are as wide and need no decoding.

        Returns:
            (rows, columns): the stored numbers, in their own type; a view of ``memory`` where it was used.

        Raises:
            FrameError: They are not there, or cannot be decoded.
            OSError: The file cannot be read.
        """
        if frame >= self.frames:
            raise FrameError(f"at least {frame + 1} frames", f"{self.frames}")
        unsigned = np.dtype(f"u{self.form.bits_allocated // 8}")
        if self._encoded is None:
            whole = self._native(frame, unsigned, memory)
        else:
            whole = self._decoded(self._encoded[frame], scratch).astype(unsigned)
        numbers = whole.view(f"i{unsigned.itemsize}") if self.form.is_signed else whole
        if unused := self.form.bits_allocated - self.form.bits_stored:  # whatever stands in them, overlays too
            numbers <<= unused
            numbers >>= unused
        return numbers

    def _read_header(self, voxel_bytes: int) -> tuple[Dataset, int, int]:
        """Return the header, and where the value of the pixel data begins and how long it is."""
        source: BinaryIO = BytesIO(self._file.read(START_BYTES))  # element by element, memory is much faster
        read_preamble(source, force=True)
        meta = read_dataset(source, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if (uid_of(meta, "TransferSyntaxUID") or self._syntax) != self._syntax:
            raise FrameError("the transfer syntax that it had", "another", CHANGED)
        begin = source.tell()
        if self._syntax == DEFLATED:
            self._file.seek(begin)
            self._file = source = self._inflated(voxel_bytes + DEFLATED_HEADER_BYTES)
        try:
            header, place = self._data_set_of(source)
        except Exception:  # whatever pydicom makes of a sequence that ends with what was read
            place = None
        if place is None:
            self._file.seek(0 if self._syntax == DEFLATED else begin)
            header, place = self._data_set_of(self._file)
        self.sop_instance_uid = uid_of(header, "SOPInstanceUID") or uid_of(meta, "MediaStorageSOPInstanceUID")
        if place is None:
            raise FrameError("voxels", "the end of the file before them")
        return header, *place

    def _data_set_of(self, source: BinaryIO) -> tuple[Dataset, tuple[int, int] | None]:
        """Return the elements before the pixel data, and where its value begins and how long it is, if it is there."""
        place: list[tuple[int, int]] = []

        def at_pixel_data(tag: BaseTag, _: str | None, length: int) -> bool:
            if tag not in _ENDS:
                return False
            if tag == _PIXEL_DATA:
                place.append((source.tell(), length))
            return True

        is_implicit, is_little = self._syntax == IMPLICIT_LITTLE_ENDIAN, self._syntax != EXPLICIT_BIG_ENDIAN
        header = read_dataset(source, is_implicit, is_little, stop_when=at_pixel_data, specific_tags=_TAGS)
        return header, place[0] if place else None

    def _inflated(self, most_bytes: int) -> BinaryIO:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        with self._file as file:
            content = inflate.decompress(file.read(), most_bytes)
        if inflate.unconsumed_tail:
            raise FrameError(f"at most {most_bytes} bytes in a deflated file", "more", _ODD)
        return BytesIO(content)

    def _form_and_frames(self) -> tuple[StoredForm, int]:
        """Return how numbers are stored, and of how many slices; refuse what libraries understand differently."""
        samples = unsigned_of(self.header, "SamplesPerPixel") or 1
        if samples != 1:
            raise FrameError("one number per voxel", f"{samples}", _ODD)
        numbers = {keyword: unsigned_of(self.header, keyword) for keyword in _NUMBERS}
        if missing := [keyword for keyword, number in numbers.items() if number is None]:
            raise FrameError(missing[0], "none")
        rows, columns, allocated, stored, high, representation = (number or 0 for number in numbers.values())
        whole = (16,) if self._syntax == EXPLICIT_BIG_ENDIAN else WHOLE_BITS
        if allocated not in whole:
            raise FrameError(f"BitsAllocated {' or '.join(map(str, whole))}", f"{allocated}", _ODD)
        if not 1 < stored <= allocated or high != stored - 1:
            raise FrameError(f"BitsStored up to {allocated} and HighBit one less", f"{stored} and {high}", _ODD)
        frames = whole_number_of(self.header, "NumberOfFrames") or 1
        return StoredForm(rows, columns, allocated, stored, representation == 1), frames

    def _native(self, frame: int, unsigned: "np.dtype[Any]", memory: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        if memory is not None and memory.dtype.kind in "iu" and memory.dtype.itemsize == unsigned.itemsize:
            numbers = memory.view(unsigned)
        else:
            numbers = np.empty((self.form.rows, self.form.columns), unsigned)
        first, last = frame * numbers.nbytes, (frame + 1) * numbers.nbytes
        if self._length == _UNDEFINED_LENGTH or last > self._length:
            found = "no length" if self._length == _UNDEFINED_LENGTH else f"{self._length}"
            raise FrameError(f"at least {last} bytes of voxels", found)
        target, done = memoryview(numbers).cast("B"), 0  # type: ignore[arg-type]
        with self._lock:
            self._file.seek(self._start + first)
            while done < len(target):
                count = self._file.readinto(target[done:])  # type: ignore[attr-defined]
                if not count:
                    raise FrameError(f"at least {last} bytes of voxels", f"{first + done}")
                done += count
        if (self._syntax == EXPLICIT_BIG_ENDIAN) != (not np.little_endian):
            numbers.byteswap(inplace=True)
        return numbers

    def _read_encoded(self) -> list[bytes]:
        self._file.seek(self._start)
        if self._length == _UNDEFINED_LENGTH:
            try:
                value = read_undefined_length_value(self._file, True, SequenceDelimiterTag)
            except EOFError:
                raise FrameError("the end of the compressed voxels", "the end of the file before it") from None
        else:
            value = self._file.read(self._length)
        tables = [self.header.get(f"ExtendedOffsetTable{name}") for name in ("", "Lengths")]
        offsets = (tables[0], tables[1]) if all(tables) else None
        frames = list(generate_frames(value or b"", number_of_frames=self.frames, extended_offsets=offsets))
        if len(frames) < self.frames:
            raise FrameError(f"{self.frames} compressed slices", f"{len(frames)}")
        return frames

    def _decoded(self, encoded: bytes, scratch: Path) -> npt.NDArray[Any]:
        try:
            plane = decoded(encoded, self.form, self._syntax, scratch)
        except CodecError:
            raise FrameError("compressed voxels that SimpleITK decodes", "damaged ones", _ODD) from None
        if self._syntax == RLE:  # whose bytes are those of uncompressed numbers, other bits too
            return plane
        lowest, highest, bits = int(plane.min()), int(plane.max()), self.form.bits_stored
        if lowest < -(2 ** (bits - 1)) or highest >= 2**bits:
            raise FrameError(f"numbers of {bits} bits", f"{lowest} to {highest}", _ODD)
        return plane
