"""The folder of a run's pages, whole or not at all: a new one is made beside the old one and takes its place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import OutputError
from ctseg.evaluate.pages.viewer import NAME
from ctseg.files.atomic import appearing, put_back, write_text
from ctseg.files.folders import make_folder

FOLDER = "report"
INDEX = "index.html"
CASES = "cases"
_MARK = b'<meta name="generator" content="ctseg">'
_MARKED_WITHIN = 1000
"""Bytes of a page's begin in which the mark of ctseg's pages stands."""


@dataclass
class NewPages:
    """A folder to fill with pages.

    Attributes:
        folder: Where the index goes; it has a folder for the pages of cases.
        removed: Once it has taken its place: pages of cases that an earlier time has made and that are not there now.
    """

    folder: Path
    removed: tuple[str, ...] = ()


@contextmanager
def new_pages(output: Path) -> Iterator[NewPages]:
    """Give a hidden folder to fill; afterwards it is ``OUT/report``, with whatever in the old one is not ctseg's.

    Until then, and where anything goes wrong, the pages of an earlier time stay as they are: an index never stands
    beside pages of another time.

    Args:
        output: The folder of label maps.

    Raises:
        OutputError: A page cannot be written.
    """
    folder, part = (output / FOLDER).resolve(), None  # a link stays one
    try:
        with appearing(folder) as part:
            make_folder(part / CASES)
            pages = NewPages(part)
            yield pages
            pages.removed = _keep_others(folder, part)
    except OutputError as error:  # of a file that people have never seen
        raise OutputError(str(error).replace(str(part), str(folder))) from error.__cause__
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def write_single_page(output: Path, name: str, page: str) -> Path:
    """Write one page that stands by itself into ``OUT/report``, beside all that is there.

    Raises:
        OutputError: It cannot be written.
    """
    folder = output / FOLDER
    try:
        put_back(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    make_folder(folder)
    write_text(folder / name, page)
    return folder / name


def write_viewer(folder: Path, script: str) -> None:
    """Write the viewer's script and its licence into a folder of pages.

    Raises:
        OutputError: They cannot be written.
    """
    write_text(folder / NAME, script)
    licence = (Path(__file__).parent / "viewer" / "NIIVUE_LICENSE").read_text(encoding="utf-8")
    write_text(folder / "niivue.LICENSE.txt", licence)


def _keep_others(old: Path, new: Path) -> tuple[str, ...]:
    """Give a new folder what is not made anew, and return the names of the pages of cases that go."""
    gone = []
    for path in sorted(old.rglob("*")) if old.is_dir() else ():
        place = new / path.relative_to(old)
        if path.is_dir() and not path.is_symlink():
            place.mkdir(exist_ok=True)
        elif os.path.lexists(place):
            continue
        elif path.parent == old / CASES and _is_ours(path):
            gone.append(path.name)
        else:
            with suppress(FileNotFoundError):  # somebody has removed it meanwhile
                _linked(path, place)
    return tuple(gone)


def _linked(path: Path, place: Path) -> None:
    try:
        os.link(path, place, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except (OSError, NotImplementedError):  # a disk without such links
        shutil.copy2(path, place, follow_symlinks=False)


def _is_ours(path: Path) -> bool:
    """Whether a file is a page that ctseg has made, by the mark that these carry."""
    if path.suffix != ".html" or not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK in file.read(_MARKED_WITHIN)
