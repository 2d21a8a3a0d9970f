"""Zips of trained models, unpacked with distrust: from a colleague, of a download, of somebody unknown.

A name that leaves the folder, a link, two members of one name, more members or bytes than a trained model has, and
whatever zip files can have broken are refused by the name of the zip.
"""

import errno
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ctseg.errors import CheckpointError, OutputError

MAX_ZIP_BYTES = 64 << 30
"""Most bytes that a zipped model may unpack to."""
MAX_JSON_BYTES = 64 << 20
MAX_MEMBERS = 5000
"""Most files of trained models in a zip: a hundred models of five folds have fewer."""
_DOCUMENTS = ("plans.json", "dataset.json", "postprocessing.json", "summary.json", "inference_information.json")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_OF_BROKEN = (None, errno.EINVAL)
"""A stream of bzip2 that is none; a place before the begin of the file."""
_BROKEN = (
    zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError, ValueError, zlib.error,
    struct.error,
)  # fmt: skip


def unpack(path: Path, target: Path, *, documents_only: bool) -> None:
    """Unpack plans, data set, results and checkpoints of a zip, and nothing else.

    Args:
        path: The zip.
        target: An empty folder.
        documents_only: Unpack no checkpoint; the folders that have one are made.

    Raises:
        CheckpointError: The zip is broken, encrypted, or has what no zip of a trained model has.
        OutputError: There is no room for it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = dict(_wanted(archive, path, documents_only=documents_only))
            _require_room(sum(member.file_size for member in members.values() if member is not None), path, target)
            for name, member in members.items():
                output = target.joinpath(*name.parts)
                output.parent.mkdir(parents=True, exist_ok=True)
                if member is not None:
                    with archive.open(member) as source, output.open("xb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise OutputError(f"{path}: no room in {target.parent} to unpack it: {error.strerror}") from error
        if error.errno in _OF_BROKEN:
            raise _broken(path, error) from error
        raise CheckpointError(f"{path}: cannot be unpacked: {error.strerror}") from error
    except _BROKEN as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: not a zip file, or not a whole one: {error}: copy or download it again")


def _wanted(
    archive: zipfile.ZipFile, path: Path, *, documents_only: bool
) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo | None]]:
    """Yield the members that are unpacked, with their places; None for a checkpoint that is left out.

    Raises:
        CheckpointError: One of them, or all together, cannot be of trained models.
    """
    total, seen = 0, set()
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        if why := _why_refused(member):
            raise CheckpointError(f"{path}: member {member.filename!r} {why}: nothing is unpacked")
        is_json = name.name in _DOCUMENTS
        if member.is_dir() or not (is_json or (name.name.startswith("checkpoint_") and name.suffix == ".pth")):
            continue
        if name in seen:
            raise CheckpointError(f"{path}: two members are called {member.filename!r}: nothing is unpacked")
        seen.add(name)
        if member.flag_bits & 1:
            raise CheckpointError(
                f"{path}: member {member.filename!r} is encrypted: unpack it with its password, and give the folder"
            )
        total += member.file_size
        if total > MAX_ZIP_BYTES or (is_json and member.file_size > MAX_JSON_BYTES) or len(seen) > MAX_MEMBERS:
            raise CheckpointError(
                f"{path}: with member {member.filename!r} the zip unpacks to more than trained models have: at most "
                f"{MAX_ZIP_BYTES >> 30} GiB in {MAX_MEMBERS} files, {MAX_JSON_BYTES >> 20} MiB in a JSON file"
            )
        yield name, None if documents_only and not is_json else member


def _why_refused(member: zipfile.ZipInfo) -> str:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts:
        return "leaves the archive's folder"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if "\\" in member.filename:
        return "has a backslash in its name, which zips have not between folders"
    return ""


def _require_room(needed: int, path: Path, target: Path) -> None:
    free = shutil.disk_usage(target).free
    if needed > free:
        raise OutputError(
            f"{path}: unpacks to {needed / 1e9:.1f} GB, and {target.parent} has {free / 1e9:.1f} GB left: make room, "
            "or set TMPDIR to a folder with more"
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
