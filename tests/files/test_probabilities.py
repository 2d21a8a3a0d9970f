"""Probabilities that are written piece by piece: the whole file or none."""

import numpy as np
import pytest

from ctseg.errors import OutputError
from ctseg.files.probabilities import ProbabilityFile
from tests.support.scan_files import disk_full_at


def test_what_was_filled_stands_in_the_archive_and_nothing_else_stays(tmp_path):
    expected = np.random.default_rng(0).random((3, 4, 5, 6), dtype=np.float32)
    file = ProbabilityFile(tmp_path / "a.npz")
    array = file.allocate(expected.shape)
    assert not array.any()
    for head in range(3):
        array[head] = expected[head]
    assert not (tmp_path / "a.npz").exists()
    file.commit()
    file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["probabilities"], expected)


@pytest.mark.parametrize("room", [1000, 40_150])
def test_full_disk_leaves_the_older_file_and_nothing_else(room, tmp_path):
    """At 1,000 bytes the array has no room, at 40,150 the archive of noise, which does not shrink."""
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    noise = np.frombuffer(np.random.default_rng(0).bytes(40_000), np.float32)
    file = ProbabilityFile(path)

    def fill():
        file.allocate((1, 10, 10, 100))[:] = noise.reshape(1, 10, 10, 100)
        file.commit()

    with disk_full_at(room), pytest.raises(OutputError, match=r"a\.npz: cannot be written"):
        fill()
    file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]
    assert path.read_bytes() == b"old"


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    first, second = (ProbabilityFile(tmp_path / "a.npz") for _ in range(2))
    first.allocate((1, 1, 1, 2))[:] = 1
    second.allocate((1, 1, 1, 2))[:] = 2
    for file in (first, second):
        file.commit()
        file.close()
    assert np.load(tmp_path / "a.npz")["probabilities"].tolist() == [[[[2, 2]]]]
