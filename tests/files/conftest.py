"""What every test of files needs."""

import nibabel
import pytest
import SimpleITK as sitk


@pytest.fixture(autouse=True)
def _quiet():
    """ITK and nibabel tell of odd headers on standard error; nnU-Net prints."""
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    level = nibabel.imageglobals.logger.level
    nibabel.imageglobals.logger.setLevel(100)
    yield
    nibabel.imageglobals.logger.setLevel(level)
