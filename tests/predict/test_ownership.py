"""What an output folder calls its own."""

from pathlib import Path

import pytest

from ctseg.errors import InputError
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.ownership import OwnFiles
from tests.support.scan_files import nobody
from tests.support.threshold import ThresholdPredictor, write_scan


def test_scans_beside_a_memory_that_this_user_may_not_read_are_not_guessed(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz")
    segment_cases(find_cases(tmp_path, channels=1), ThresholdPredictor(), tmp_path / "out", BatchOptions())
    with (
        nobody(tmp_path / "out" / ".ctseg", 0o000),
        pytest.raises(InputError, match=r"expected a \.ctseg that can be read, which tells scans from label maps"),
    ):
        assert "a.nii.gz" in OwnFiles(tmp_path / "out")
    assert "a.nii.gz" in OwnFiles(tmp_path / "out")
    assert "b.nii.gz" not in OwnFiles(tmp_path / "out")
