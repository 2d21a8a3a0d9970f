"""Which files of an output folder are ctseg's: these it may replace and remove, and no others.

A file is ctseg's while its bytes are those that an outcome or a claim says it wrote. Whatever a person has
corrected, or another program has put there, is not.
"""

import errno
from collections.abc import Container, Mapping
from functools import cached_property
from pathlib import Path

from ctseg.errors import InputError, OutputError
from ctseg.files.digests import sha256_of_file
from ctseg.files.identity import printable
from ctseg.predict.claims import being_put
from ctseg.predict.outcomes import MEMORY_NAME, Outcome, names_of_outputs
from ctseg.predict.report import REPORT_NAME, TABLE_NAME


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
        if error.errno == errno.ENAMETOOLONG:  # nothing can stand there
            return False
        if error.errno == errno.EINVAL:  # a pipe, a folder, a device
            return True
        raise OutputError(f"{path}: stands in the way and cannot be read: {error.strerror or error}") from error


class OwnFiles(Container[str]):
    """Names of the files that ctseg has put into a folder, or is putting there: they are no scans.

    They are looked up when first asked for: whoever lists the folder before then takes no label map for a scan that
    another run puts there meanwhile.

    Args:
        folder: Of scans and, perhaps, of label maps.

    Raises:
        InputError: When a name is looked up: what the folder remembers cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        try:
            putting = being_put(self._folder)  # first: a claim ends once the outcome is written
            return putting | names_of_outputs(self._folder) | {REPORT_NAME, TABLE_NAME}
        except (OSError, OutputError) as error:
            raise InputError(
                f"{self._folder}: expected a {MEMORY_NAME} that can be read, which tells scans from label maps that "
                f"ctseg has written ({error}): let this user read it, or give a folder of scans alone"
            ) from error
