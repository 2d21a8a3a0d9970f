"""A file by which a server's entries for whole scans learn that no more shall begin."""

from pathlib import Path


def stopping_file(repository: Path) -> Path:
    """Return the file: beside the model repository as the server sees it, which is a folder of the server's own."""
    return repository.with_name("stopping")
