"""The folder of real CT that is too large for the repository, if there is one.

Every claim has a generated or committed fixture, so that a clean clone checks it; what lies here only
widens it. ``CTSEG_TEST_DATA`` names the folder.
"""

import os
from pathlib import Path

VARIABLE = "CTSEG_TEST_DATA"


def real_data_folder() -> Path | None:
    """Return the folder that the environment names, None where it names none.

    Raises:
        FileNotFoundError: It names a folder that is not there.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{VARIABLE}={named}: no such folder")
    return folder
