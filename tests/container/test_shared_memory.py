"""Shared memory is counted before the start."""

from pathlib import Path

import pytest

from ctseg.container.shared_memory import require_shared_memory, shared_memory_needed
from ctseg.errors import SetupError
from ctseg.serving.entries import read_entry
from tests.support.container_entries import entry
from tests.support.toy_models import write_toy_entry


def test_shared_memory_for_a_full_batch_of_each_instance() -> None:
    voxels = 8 * 16 * 16
    assert shared_memory_needed(entry(), 2) == 2 * (4 * voxels * (4 + 2 * 2) + (16 << 20))
    assert shared_memory_needed(entry("tensorrt"), 2) == 0


def test_too_little_is_told_with_the_size_to_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_entry(tmp_path / "models", instance_count=2)
    entries = [read_entry(tmp_path / "models" / "toy")]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"total": 33 << 20}))
    require_shared_memory(entries)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"total": 32 << 20}))
    with pytest.raises(SetupError, match=r"has 32 MB.* need 33 MB .*--shm-size 33m"):
        require_shared_memory(entries)
