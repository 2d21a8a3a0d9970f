"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("CTSEG_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
DEMO_DATA = Path(__file__).parents[1] / "examples" / "demo_data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT that is too large for the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"NO REAL CT: {SHARED_DATA} is missing; set CTSEG_TEST_DATA to run this test")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_data() -> Path:
    """The real CT that the repository carries."""
    return DEMO_DATA
