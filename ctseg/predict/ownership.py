"""Which files of an output folder are ctseg's: these it may replace and remove, and no others.

A file is ctseg's while its bytes are those that an outcome or a claim says it wrote. Whatever a person has
corrected, or another program has put there, is not.
"""

from collections.abc import Mapping
from pathlib import Path

from ctseg.errors import OutputError
from ctseg.files.digests import sha256_of_file
from ctseg.files.identity import printable
from ctseg.predict.outcomes import Outcome


def is_foreign(path: Path, outcome: Outcome | None, left: Mapping[str, str]) -> bool:
    """Whether something stands at a path that is not ctseg's.

    Args:
        path: In the output folder.
        outcome: What is known of the case.
        left: What a run that was killed was putting in place, SHA-256 by name.

    Raises:
        OutputError: It is there and cannot be read.
    """
    name = printable(path.name)
    digests = {left.get(name)} | {file.sha256 for file in (outcome.outputs if outcome else ()) if file.name == name}
    try:
        return sha256_of_file(path) not in digests
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{path}: stands in the way and cannot be read: {error.strerror or error}") from error
