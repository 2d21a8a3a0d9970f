"""The parts of a multipart answer, as its bytes come: nothing is held but one chunk."""

from collections.abc import Iterable, Iterator

from ctseg.errors import PacsError
from ctseg.pacs.session import PacsTroubledError

_MOST_HEADER_BYTES = 1 << 16
_MOST_BOUNDARY_BYTES = 1024


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a multipart answer's ``Content-Type`` names.

    Raises:
        PacsError: It names none.
    """
    kind, *parameters = content_type.split(";")
    if kind.strip().lower() == "multipart/related":
        for parameter in parameters:
            name, _, value = parameter.strip().partition("=")
            if name.lower() == "boundary" and 0 < len(value.strip('"')) <= _MOST_BOUNDARY_BYTES:
                return value.strip('"').encode("latin-1", "replace")
    raise PacsError("the answer is no multipart/related with a boundary")


def parts_of(chunks: Iterable[bytes], boundary: bytes) -> Iterator[Iterator[bytes]]:
    """Yield each part's content in pieces; what of a part is not taken is passed over.

    Args:
        chunks: Of the whole answer.
        boundary: Between the parts.

    Raises:
        PacsTroubledError: The answer ends before its end.
        PacsError: The headers of a part have no end.

    Source:
        RFC 2046, 5.1.1.
    """
    stream = _Stream(chunks)
    delimiter = b"\r\n--" + boundary
    _pass_over(stream.until(delimiter))
    while not stream.ends_here():
        _pass_over(stream.until(b"\r\n\r\n", most_bytes=_MOST_HEADER_BYTES))
        part = stream.until(delimiter)
        yield part
        _pass_over(part)


class _Stream:
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b"\r\n"  # the first boundary begins no line

    def ends_here(self) -> bool:
        """Whether the boundary that was just passed is the last."""
        while len(self._buffer) < 2:
            self._more()
        return self._buffer.startswith(b"--")

    def until(self, mark: bytes, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """Yield what stands before a mark, and pass over the mark."""
        seen = 0
        while (at := self._buffer.find(mark)) < 0:
            end = max(len(self._buffer) - len(mark) + 1, 0)
            ready, self._buffer = self._buffer[:end], self._buffer[end:]
            seen += len(ready)
            if most_bytes is not None and seen > most_bytes:
                raise PacsError("the answer is no multipart: the headers of a part have no end")
            if ready:
                yield ready
            self._more()
        ready, self._buffer = self._buffer[:at], self._buffer[at + len(mark) :]
        if ready:
            yield ready

    def _more(self) -> None:
        try:
            self._buffer += next(self._chunks)
        except StopIteration:
            raise PacsTroubledError("the answer was cut off") from None


def _pass_over(part: Iterator[bytes]) -> None:
    for _ in part:
        pass
