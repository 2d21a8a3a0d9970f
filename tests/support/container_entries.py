"""Settings and entries for tests of the serving container, without a container or a network."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ctseg.container.settings import Settings, read_settings
from ctseg.model_spec import Tensor


def settings_of(**variables: str) -> Settings:
    """Read settings from an environment that has these variables, too."""
    with mock.patch.dict(os.environ, variables):
        return read_settings()


def entry(
    backend: str = "python", batch: int = 4, versions: tuple[int, ...] = (1,), folder: Path = Path("/models/m")
) -> Any:
    """What the container looks at of an entry."""
    spec = SimpleNamespace(
        patch_size=(8, 16, 16),
        channels=("CT",),
        num_input_channels=1,
        num_heads=2,
        max_batch_size=batch,
        input=Tensor(name="input", dtype="FP32"),
        output=Tensor(name="output", dtype="FP16"),
        votes=None,
    )
    items = tuple(SimpleNamespace(version=number, folder=folder / str(number), spec=spec) for number in versions)
    return SimpleNamespace(name=folder.name, folder=folder, backend=backend, versions=items, newest=items[-1])


def built(root: Path, *builds: dict[str, Any], backend: str = "tensorrt") -> Any:
    """A model on disk with a version for each build."""
    folder = root / "m"
    for number in range(1, len(builds) + 1):
        (folder / str(number)).mkdir(parents=True)
    (folder / "config.pbtxt").write_text("x")
    made = entry(backend, versions=tuple(range(1, len(builds) + 1)), folder=folder)
    for version, build in zip(made.versions, builds, strict=True):
        version.build = build
        (version.folder / "build.json").write_text(json.dumps(build))
    return made


L4, RTX, OLD = ({"tensorrt": "11.2", "gpu": "L4"}, {"tensorrt": "11.2", "gpu": "RTX"}, {"tensorrt": "10", "gpu": "L4"})
