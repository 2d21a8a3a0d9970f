"""Programs of others that check or read DICOM objects."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ALLOWED_OF_LABELMAP = (
    # dicom3tools is older than Supplement 243: it knows neither the class nor a background that has a number
    "Error - Information Object Not found",
    "SegmentNumber not monotonically increasing from one by one - have SegmentSequence item number 1 (from one) with "
    "SegmentNumber of 0",
    "ReferencedSegmentNumber(0062,000b)> - Shall not be present for Referenced SOP Class that is not segmentation",
)
ALLOWED_OF_SOURCE = (
    # a name that the images have
    "Retired Person Name form",
)
ALLOWED_OF_PRIVATE_CODES = ("Unrecognized defined term = <99CTSEG>",)  # which no label with codes has


def required_tool(name: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails under CTSEG_REQUIRE_DICOM_TOOLS."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")  # Orthanc's place
    if found is None:
        text = f"{name} is not installed: scripts/dicom_tools.sh"
        if os.environ.get("CTSEG_REQUIRE_DICOM_TOOLS"):
            pytest.fail(text)
        pytest.skip(text)
    return found


def dciodvfy_findings(path: Path, allowed: tuple[str, ...] = ()) -> list[str]:
    """Return the errors and warnings that ``dciodvfy -new`` has of a file, but for those that are allowed by name."""
    done = subprocess.run(
        [required_tool("dciodvfy"), "-new", str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Warning"))]
    return [line for line in lines if not any(text in line for text in allowed)]
