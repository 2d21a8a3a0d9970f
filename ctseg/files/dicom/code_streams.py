"""What compressed slices say of themselves: looked at before they are decoded, for decoders trust it."""

from dataclasses import dataclass

_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xDA)))
_FRAME = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG and JPEG-LS that begin a frame."""
_J2K_START = bytes.fromhex("ff4fff51")
_BOXES_BYTES = 4096
"""Within which a code stream begins where it lies in the boxes of a JP2 file, as it should not."""


@dataclass(frozen=True)
class CodeStream:
    """A picture in a compressed slice.

    Attributes:
        rows: Along a column.
        columns: Along a row.
        components: Numbers of a pixel.
        bits: Of each number.
    """

    rows: int
    columns: int
    components: int
    bits: int


def jpeg_of(encoded: bytes) -> CodeStream | None:
    """Return what a JPEG or JPEG-LS stream says; None: it is none.

    Source:
        ISO/IEC 10918-1, B.2: markers, and the header of a frame.
    """
    if encoded[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker in _FRAME and at + 10 <= len(encoded):
            bits, rows, columns, components = (
                encoded[at + 4],
                int.from_bytes(encoded[at + 5 : at + 7], "big"),
                int.from_bytes(encoded[at + 7 : at + 9], "big"),
                encoded[at + 9],
            )
            return CodeStream(rows, columns, components, bits)
        at += 2 if marker in _NO_LENGTH else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def jpeg_2000_of(encoded: bytes) -> CodeStream | None:
    """Return what a JPEG 2000 code stream says; None: it is none, or its components have several resolutions.

    Source:
        ISO/IEC 15444-1, A.5.1: the marker segment SIZ.
    """
    begin = encoded.find(_J2K_START, 0, _BOXES_BYTES)
    size = encoded[begin : begin + 45]
    if begin < 0 or len(size) < 45 or size[43:] != b"\x01\x01":
        return None
    columns, rows, left, top = (int.from_bytes(size[at : at + 4], "big") for at in (8, 12, 16, 20))
    return CodeStream(rows - top, columns - left, int.from_bytes(size[40:42], "big"), (size[42] & 0x7F) + 1)
