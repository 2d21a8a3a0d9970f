"""Notes that runs keep in an output folder's memory: small documents, written whole, read as far as they can be."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ctseg.documents import Document
from ctseg.files.atomic import write_text
from ctseg.files.folders import make_folder

Note = TypeVar("Note", bound=Document)


def write_note(path: Path, note: Document, *, through: Path | None = None) -> None:
    """Write a note at once, into a folder that is made if missing.

    Args:
        path: Its file.
        note: What it says.
        through: See :func:`ctseg.files.atomic.replacing`.

    Raises:
        OutputError: It cannot be written.
    """
    make_folder(path.parent)
    write_text(path, json.dumps(note.model_dump(mode="json")), through=through)


def read_notes(folder: Path, kind: type[Note]) -> Iterator[tuple[Path, Note]]:
    """Yield the notes of a folder with their files, in order of the files' names; what cannot be used is left out."""
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            note = kind.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        yield path, note
