"""The content of a gzip file, piece by piece, and no further than it is asked for.

nibabel and ITK stop at the last voxel, so that nnU-Net's readers take a scan that something follows. Python's
own reader looks ahead, and refuses what follows a stream of gzip and is none.
"""

import contextlib
import zlib
from typing import Any, BinaryIO, cast

_decompressobj: Any = zlib.decompressobj
DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error)
"""What reading raises where the content is damaged, or its end is missing."""
with contextlib.suppress(ImportError):  # without the extra fast-io, zlib does the same, slower
    from isal import isal_zlib

    _decompressobj = isal_zlib.decompressobj
    DAMAGED = (*DAMAGED, cast(Any, isal_zlib.IsalError))

GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 18


class GzipContent:
    """What a file of one or more streams of gzip holds.

    Args:
        file: Open for reading, at its begin.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = _new_stream()
        self._piece = b""

    def read(self, size: int) -> bytes:
        """Return so many bytes; fewer only at the end.

        Raises:
            DAMAGED: One of these.
        """
        pieces = []
        while size and (piece := self._some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def readinto(self, target: memoryview) -> int:
        """Fill bytes; return how many: at least one, unless the end has come.

        Raises:
            DAMAGED: One of these.
        """
        piece = self._some(len(target))
        target[: len(piece)] = piece
        return len(piece)

    def finish_stream(self) -> None:
        """Read on to where the sum of the present stream is checked.

        Raises:
            DAMAGED: One of these.
        """
        while not self._stream.eof:
            self._decompressed(_PIECE_BYTES)

    def _some(self, size: int) -> bytes:
        while True:
            if self._stream.eof and not self._has_another_stream():
                return b""
            if piece := self._decompressed(size):
                return piece

    def _decompressed(self, size: int) -> bytes:
        piece = self._piece or self._file.read(_PIECE_BYTES)
        data: bytes = self._stream.decompress(piece, size)
        if not (piece or data or self._stream.eof):
            raise EOFError("the end is missing")
        self._piece = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return data

    def _has_another_stream(self) -> bool:
        """Go on to the next stream, over zeros that fill up a block, if there is one."""
        while piece := self._piece.lstrip(b"\0") or self._file.read(_PIECE_BYTES):
            self._piece = piece
            if piece[0]:
                break
        if len(self._piece) < len(GZIP_MAGIC):
            self._piece += self._file.read(_PIECE_BYTES)
        if not self._piece.startswith(GZIP_MAGIC):
            return False
        self._stream = _new_stream()
        return True


def _new_stream() -> Any:
    return _decompressobj(wbits=16 + zlib.MAX_WBITS)
