"""Shared memory is counted before the start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctseg.container.shared_memory import (
    networks_of_scans,
    require_shared_memory,
    shared_memory_for_scans,
    shared_memory_needed,
)
from ctseg.errors import SetupError
from ctseg.recipe import Recipe
from ctseg.serving.entries import list_entries, read_entry
from ctseg.serving.recipe_entry import publish_recipe
from tests.support.container_entries import entry
from tests.support.toy_models import toy_spec, write_toy_entry
from tests.support.whole_scans import write_scannable_entry


def test_shared_memory_for_a_full_batch_of_each_instance() -> None:
    voxels = 8 * 16 * 16
    assert shared_memory_needed(entry(), 2) == 2 * (4 * voxels * (4 + 2 * 2) + (16 << 20))
    assert shared_memory_needed(entry("tensorrt"), 2) == 0


@pytest.mark.parametrize(("backend", "copies"), [("python", 2), ("tensorrt", 1), ("onnxruntime", 1)])
def test_a_window_of_a_scan_passes_it_for_every_backend(backend: str, copies: int) -> None:
    spec = toy_spec(patch_size=(128, 128, 128), labels=[{"name": str(i), "values": [i]} for i in range(118)])
    network: Any = SimpleNamespace(newest=SimpleNamespace(spec=spec), backend=backend)
    window = copies * 128**3 * 4 * (118 + 2)
    assert shared_memory_for_scans([network]) == 2 * window + (16 << 20)


def test_entries_for_whole_scans_are_found_with_the_networks_that_they_call(tmp_path: Path) -> None:
    root = tmp_path / "models"
    specs = [write_scannable_entry(root), write_toy_entry(root, toy_spec("patches"))]
    members = [{"model": spec.name, "digest": spec.digest} for spec in specs]
    steps = [{"kind": "model", "model": spec.name} for spec in specs]
    step = {"kind": "ensemble", "members": steps}
    publish_recipe(root, Recipe.model_validate({"name": "r", "members": members, "step": step}))
    found = networks_of_scans(root, list_entries(root))
    assert {name: [entry.name for entry in networks] for name, networks in found.items()} == {
        "toy_scan": ["toy"],
        "r": ["toy", "patches"],
    }


def test_too_little_is_told_with_the_size_to_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_entry(tmp_path / "models", instance_count=2)
    entries = [read_entry(tmp_path / "models" / "toy")]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"total": 33 << 20}))
    require_shared_memory(entries, {})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"total": 32 << 20}))
    with pytest.raises(SetupError, match=r"has 32 MB.* need 33 MB .*--shm-size 33m"):
        require_shared_memory(entries, {})
    with pytest.raises(SetupError, match=r"and whole scans need 49 MB .*without whole scans"):
        require_shared_memory(entries, {"toy_scan": entries})
