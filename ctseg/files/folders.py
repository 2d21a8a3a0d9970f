"""Folders that are written into: whether they can be, asked before any work; and how they are made."""

import os
from pathlib import Path

from ctseg.errors import InputError, OutputError


def require_writable(folder: Path, *, name: str = "") -> None:
    """Refuse a folder that nothing can be written into; one that is missing counts as what it would be made in.

    Nothing is made.

    Args:
        folder: Where something is to be written.
        name: What it is, such as a model's name; begins the message.

    Raises:
        OutputError: It, or the nearest folder above it that exists, is no folder, or this user may not write there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    owner = there.lstat()
    who = f"user {os.getuid()}:{os.getgid()}, " if hasattr(os, "getuid") else ""
    raise OutputError(
        f"{name}{': ' if name else ''}cannot write into {folder}: {there} is read-only, or no folder "
        f"({who}owner {owner.st_uid}:{owner.st_gid}, mode {owner.st_mode & 0o777:o})"
    )


def why_no_folder(path: Path) -> str:
    """Return why a path is no folder, in words."""
    return "is a file, expected a folder" if path.exists() else "no such folder"


def require_folder(folder: Path, *, of: str) -> None:
    """Refuse what is a file where a folder is needed; what is missing is told when it is read.

    Args:
        folder: Where it is looked for.
        of: What is to lie in it, in the plural.

    Raises:
        InputError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of {of}, found a file: name the folder that it lies in")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; one that is there stays as it is.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
