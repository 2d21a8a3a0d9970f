"""A series or an object from a PACS into files (WADO-RS): all of it, or nothing."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import requests

from ctseg.errors import OutputError, PacsError
from ctseg.files.atomic import temporary_path
from ctseg.files.folders import make_folder
from ctseg.pacs.find import PacsSeries
from ctseg.pacs.multipart import boundary_of, parts_of
from ctseg.pacs.session import PacsRefusedError, PacsSession, PacsTroubledError

_DICOM = "application/dicom"
_ACCEPTED = (
    f'multipart/related; type="{_DICOM}"; transfer-syntax=*',  # as it was stored
    f'multipart/related; type="{_DICOM}"',
)
_NOT_ACCEPTABLE = 406


def fetch_series(session: PacsSession, series: PacsSeries, folder: Path, *, instances: int) -> int:
    """Fetch all instances of a series into a folder, whose files have numbers for names.

    Args:
        session: Asks the PACS.
        series: Which.
        folder: Not there yet; it appears when everything is in it.
        instances: How many there must be.

    Returns:
        How many bytes they have.

    Raises:
        PacsAwayError: The PACS was away for too long, or gives fewer instances than it lists.
        PacsError: It refuses; or gives more bytes than are taken, or more instances than it lists.
        OutputError: The disk is full or read-only; nothing is left there.
    """
    partial = temporary_path(folder)
    try:
        size = _fetched(session, "a series", series.path, partial, most=instances, least=instances)
        partial.rename(folder)
        return size
    except OSError as error:
        raise OutputError(f"{folder.parent}: no place for a series: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetch_instance(session: PacsSession, series: PacsSeries, sop_instance_uid: str, folder: Path) -> Path | None:
    """Fetch one object into a folder; return its file, or None where the PACS does not have it.

    Args:
        session: Asks the PACS.
        series: That it belongs to.
        sop_instance_uid: Which.
        folder: Not there yet.

    Raises:
        PacsError: The PACS is away or refuses.
        OutputError: The disk is full or read-only.
    """
    try:
        _fetched(session, "an object", f"{series.path}/instances/{sop_instance_uid}", folder, most=1, least=1)
    except PacsRefusedError as error:
        if error.status in (404, 410):
            return None
        raise
    except OSError as error:
        raise OutputError(f"{folder}: no place for an object: {error.strerror or error}") from error
    return next(folder.iterdir())


def _fetched(session: PacsSession, what: str, path: str, folder: Path, *, most: int, least: int) -> int:
    for accepted in _ACCEPTED:
        try:
            return session.answer(
                what, "GET", path, lambda response: _written(session, response, what, folder, most, least),
                headers={"Accept": accepted, "Accept-Encoding": "identity"},
            )  # fmt: skip
        except PacsRefusedError as error:
            if error.status != _NOT_ACCEPTABLE or accepted == _ACCEPTED[-1]:
                raise
    raise AssertionError("the last form is raised or returned")


def _written(session: PacsSession, response: requests.Response, what: str, folder: Path, most: int, least: int) -> int:
    """Write the parts of an answer into a folder, from its begin at each try."""
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    chunks = session.chunks(response, what, most_bytes=session.options.most_series_bytes)
    content_type = response.headers.get("Content-Type", "")
    parts: Iterable[Iterable[bytes]]
    if content_type.split(";")[0].strip().lower() == _DICOM:  # one instance, by an older reading of the standard
        parts = (chunks,)
    else:
        parts = parts_of(chunks, boundary_of(content_type))
    size = count = 0
    for part in parts:
        count += 1
        if count > most:
            raise PacsError(f"{session.options.shown}: {what}: more instances than the {most} that are listed")
        with (folder / f"{count:06}.dcm").open("xb") as file:
            size += sum(file.write(piece) for piece in part)
    if count < least:
        raise PacsTroubledError(f"{session.options.shown}: {what}: {count} of {least} instances came")
    return size
