"""An object into a PACS (STOW-RS), which counts as stored once the PACS gives back the same."""

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from ctseg.errors import PacsAwayError, PacsError
from ctseg.files.dicom.objects import ObjectUids, is_same_data_set, uids_of
from ctseg.files.regular import open_regular
from ctseg.pacs.fetch import fetch_instance
from ctseg.pacs.find import PacsSeries, has_instances, uid_in, value_in
from ctseg.pacs.session import JSON, PacsRefusedError, PacsSession

_FAILED, _REASON, _REFERENCED = "00081198", "00081197", "00081155"
_CHUNK_BYTES = 1 << 18
_MOST_ANSWER_BYTES = 1 << 20
_DUPLICATE = 0x0111
_REASONS = {
    0x0110: "it could not be processed",
    0x0111: "an object of this UID is there",
    0x0117: "its UID is not taken",
    0x0122: "its kind of object is not taken",
    0x0124: "it may not be stored by this user",
    0xA700: "there is no place for it",
    0xA900: "it does not fit its kind of object",
    0xC000: "it is not understood",
    0xC122: "its transfer syntax is not taken",
}
"""Source: DICOM PS3.18, table I.2.2."""


def store_object(session: PacsSession, path: Path, scratch: Path) -> bool:
    """Store an object, unless the PACS has it already.

    What the PACS says is not enough: Orthanc answers that an object is stored where it keeps an older one of the same
    UID. So the object is fetched again and compared.

    Args:
        session: Asks the PACS.
        path: File of the object.
        scratch: Folder for what is fetched; removed at the end.

    Returns:
        Whether it was stored now; False: it was there.

    Raises:
        PacsAwayError: The PACS is away.
        PacsError: It refuses, or has another object of this UID.
        InputError: The file is no DICOM object.
        OutputError: There is no place for what is fetched.
    """
    uids = uids_of(path)
    series = PacsSeries(uids.study, uids.series)
    # asked first: to fetch what is not there is an error in the log of a PACS
    if has_instances(session, series, uids.instance) and _came_back(session, path, uids, scratch):
        return False
    _sent(session, path, uids)
    if not _came_back(session, path, uids, scratch):
        raise PacsAwayError(
            f"{session.options.shown}: {uids.label} was stored, and does not come back: is its disk full?"
        )
    return True


def _came_back(session: PacsSession, path: Path, uids: ObjectUids, scratch: Path) -> bool:
    """Return whether an object can be fetched, and is the same.

    Raises:
        PacsError: The PACS is away or refuses, or has another object of this UID.
    """
    try:
        found = fetch_instance(session, PacsSeries(uids.study, uids.series), uids.instance, scratch)
        if found is None:
            return False
        if not is_same_data_set(path, found):
            raise PacsError(
                f"{session.options.shown}: {uids.label} is there with another content: ctseg has not made it, or the "
                "PACS changes what it stores: it is left as it is"
            )
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sent(session: PacsSession, path: Path, uids: ObjectUids) -> None:
    boundary = secrets.token_hex(16)
    headers = {
        "Accept": JSON,
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
    }

    def read(response: requests.Response) -> None:
        content = b"".join(session.chunks(response, "storing", most_bytes=_MOST_ANSWER_BYTES))
        _check_failures(session, content, uids)

    try:
        session.answer(
            f"storing {uids.label}", "POST", "/studies", read, headers=headers, data=lambda: _Body(path, boundary)
        )
    except PacsRefusedError as error:  # 409: nothing was stored; why stands in the answer
        if not _check_failures(session, error.content, uids):
            raise


def _check_failures(session: PacsSession, content: bytes, uids: ObjectUids) -> bool:
    """Refuse an answer that lists the object among those that failed.

    Returns:
        Whether it failed because one of its UID is there, which is compared afterwards.
    """
    failed = [item for item in _sequence(content, _FAILED) if uid_in(item, _REFERENCED) in (uids.instance, None)]
    reasons = {value_in(item, _REASON) for item in failed}
    if reasons <= {_DUPLICATE}:
        return bool(reasons)
    known = ", ".join(sorted(map(_worded, reasons)))
    raise PacsError(f"{session.options.shown}: {uids.label} was not stored: {known}")


def _sequence(content: bytes, tag: str) -> list[Any]:
    """Return a sequence of an answer; of one that is no JSON, nothing: what is fetched decides."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return []
    attribute = answer.get(tag) if isinstance(answer, dict) else None
    items = attribute.get("Value") if isinstance(attribute, dict) else None
    return items if isinstance(items, list) else []


def _worded(reason: Any) -> str:
    if not isinstance(reason, int):
        return "no reason is given"
    known = _REASONS.get(reason) or _REASONS.get(reason & 0xFF00) or _REASONS.get(reason & 0xF000)
    return f"{known} (0x{reason:04X})" if known else f"0x{reason:04X}"


class _Body:
    """A file as the one part of a multipart request, sent with its length and not held."""

    def __init__(self, path: Path, boundary: str) -> None:
        self._path = path
        self._head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._size = path.stat().st_size

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with open_regular(self._path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
        yield self._tail
