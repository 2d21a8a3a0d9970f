"""One Orthanc for all tests of the room; each test finds it empty."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctseg.pacs.options import PacsOptions
from ctseg.pacs.session import PacsSession
from tests.support.dicom_series import ct_series, write_series
from tests.support.dicom_tools import required_tool
from tests.support.orthanc import Orthanc


@pytest.fixture(scope="package")
def running_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    orthanc = Orthanc(required_tool("Orthanc"), tmp_path_factory.mktemp("orthanc"))
    orthanc.start()
    yield orthanc
    orthanc.stop(signal.SIGKILL)  # quicker


@pytest.fixture
def orthanc(running_orthanc: Orthanc) -> Orthanc:
    running_orthanc.clear()
    return running_orthanc


@pytest.fixture
def session(orthanc: Orthanc) -> Iterator[PacsSession]:
    session = PacsSession(PacsOptions(orthanc.url))
    yield session
    session.close()


@pytest.fixture(scope="package")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of a series of five slices."""
    made = ct_series((5, 6, 7), StudyDate="20260105")
    return write_series(tmp_path_factory.mktemp("slices"), made.datasets)
