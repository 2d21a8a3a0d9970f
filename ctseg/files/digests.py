"""SHA-256 of files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ctseg.files.regular import open_regular

_PIECE_BYTES = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: The file cannot be read, or is a pipe or a device.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 of files that belong together, in hexadecimal: of one that of its content.

    Of several it is the digest of their digests, in the order in which they are given, whatever their names.

    Raises:
        OSError: One cannot be read.
    """
    digests = [sha256_of_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
