"""One case of a recipe in a process of its own: what it was estimated to take, and what it took at most.

``python -m tests.support.measured_recipe NAME`` prints both in bytes, and what each member takes by itself with
``--alone``. As in :mod:`tests.support.measured_case`, the networks are in the process and faster than what comes after
them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.files.cases import find_cases
from ctseg.files.volume import read_volume_header
from ctseg.model_spec import ModelSpec
from ctseg.predict.folder import FolderRun
from ctseg.predict.inference_queue import InferenceThreads
from ctseg.predict.options import BatchOptions
from ctseg.predict.progress import Progress
from ctseg.predict.recipe_segmenter import RecipeSegmenter
from ctseg.recipe import Recipe
from tests.support.measured_case import _CUBIC, InstantPredictor, Shape, status_bytes, write_scan

_PATIENCE_S = 300.0


@dataclass(frozen=True)
class RecipeShape:
    """A scan, and what several networks do with it.

    Attributes:
        scan: The scan, and what all networks have alike.
        specs: In what each differs, by name.
        step: What is done.
    """

    scan: Shape
    specs: Mapping[str, dict[str, Any]]
    step: dict[str, Any] = field(default_factory=dict)

    def spec_of(self, name: str) -> ModelSpec:
        raw = self.scan.model_spec.model_dump(mode="json")
        if self.step["kind"] == "cascade" and self.step["model"] == name:
            first = self.spec_of(self.step["previous"])
            previous = {
                "model": first.name, "digest": first.digest, "labels": list(range(1, self.scan.heads)),
                "resampling": {"function": "resample_data_or_seg_to_shape"},
            }  # fmt: skip
            raw |= {"previous_stage": previous}
        return ModelSpec.validated({**raw, "name": name, **self.specs[name]}, source="measured")

    def predictors(self) -> dict[str, InstantPredictor]:
        return {name: InstantPredictor(self.spec_of(name)) for name in self.specs}


def ensemble(*names: str) -> dict[str, Any]:
    return {"kind": "ensemble", "members": [model(name) for name in names]}


def model(name: str) -> dict[str, str]:
    return {"kind": "model", "model": name}


def union(*names: str) -> dict[str, Any]:
    parts = [{"step": model(name), "values": {1: 1 + index}} for index, name in enumerate(names)]
    labels = [{"name": name, "values": [1 + index]} for index, name in enumerate(names)]
    return {"kind": "union", "parts": parts, "labels": labels}


_FINE = {"spacing_mm": (1.5, 1.2, 1.2), "patch_size": (48, 96, 96)}
_COARSE = {"spacing_mm": (2.0, 1.5, 1.5), "patch_size": (64, 80, 80)}
_TURNED = {"spacing_mm": (1.2, 1.5, 1.2), "patch_size": (96, 48, 96), "transpose_forward": (1, 0, 2)}
_SCAN = Shape((400, 400, 160), (0.8, 0.8, 1.5), heads=40)
_FEW = Shape((400, 400, 160), (0.8, 0.8, 1.5), heads=6)
_LARGE = Shape((512, 512, 400), (0.75, 0.75, 1.0), {"max_batch_size": 1}, heads=59)

RECIPES = {
    "ensemble of two": RecipeShape(_SCAN, {"a": _FINE, "b": _COARSE}, ensemble("a", "b")),
    "ensemble of three": RecipeShape(_SCAN, {"a": _FINE, "b": _COARSE, "c": _FINE}, ensemble("a", "b", "c")),
    "ensemble of whole volumes": RecipeShape(_FEW, {"a": _FINE, "b": _TURNED}, ensemble("a", "b")),
    "ensemble of cubic logits": RecipeShape(
        _FEW, {"a": {**_FINE, **_CUBIC}, "b": _COARSE}, ensemble("a", "b")
    ),
    "cascade": RecipeShape(
        _FEW, {"a": _COARSE, "b": _FINE}, {"kind": "cascade", "previous": "a", "model": "b"}
    ),
    "crop": RecipeShape(
        _FEW,
        {"a": _COARSE, "b": _FINE},
        {"kind": "crop", "finder": model("a"), "labels": [1], "margin_mm": 5, "inside": model("b"),
         "nothing_found": "empty"},
    ),
    "union": RecipeShape(_FEW, {"a": _FINE, "b": _FINE, "c": _FINE}, union("a", "b", "c")),
    "union of two spacings": RecipeShape(_FEW, {"a": _FINE, "b": _COARSE, "c": _FINE}, union("a", "b", "c")),
    "large, ensemble of two": RecipeShape(
        _LARGE,
        {"a": {"spacing_mm": (1.5, 1.5, 1.5), "patch_size": (96, 96, 96)},
         "b": {"spacing_mm": (2.0, 1.8, 1.8), "patch_size": (96, 96, 96)}},
        ensemble("a", "b"),
    ),
    "large, ensemble of three": RecipeShape(
        _LARGE,
        {"a": {"spacing_mm": (1.5, 1.5, 1.5), "patch_size": (96, 96, 96)},
         "b": {"spacing_mm": (2.0, 1.8, 1.8), "patch_size": (96, 96, 96)},
         "c": {"spacing_mm": (1.5, 1.8, 1.8), "patch_size": (64, 96, 96)}},
        ensemble("a", "b", "c"),
    ),
}  # fmt: skip


class FallingBehind(Progress):
    """Goes on only when the networks have answered all that was sent to them."""

    def __init__(self, segmenter: RecipeSegmenter, predictors: Mapping[str, InstantPredictor]) -> None:
        self._predictors = predictors.values()
        self._sent = 0
        threads: InferenceThreads = segmenter._threads
        put = threads.put

        def counted(*arguments: Any) -> None:
            self._sent += 1
            put(*arguments)

        threads.put = counted  # type: ignore[method-assign]

    def windows_done(self, count: int) -> None:
        give_up_at = time.monotonic() + _PATIENCE_S
        while sum(predictor.batches_answered for predictor in self._predictors) < self._sent:
            assert time.monotonic() < give_up_at
            time.sleep(0.0005)


def segmenter_of(shape: RecipeShape, predictors: Mapping[str, InstantPredictor]) -> RecipeSegmenter:
    members = [{"model": name, "digest": predictor.spec.digest} for name, predictor in predictors.items()]
    recipe = Recipe.model_validate({"name": "together", "members": members, "step": shape.step})
    return RecipeSegmenter(recipe, predictors)


def segment(folder: Path, output: Path, shape: RecipeShape) -> None:
    predictors = shape.predictors()
    segmenter = segmenter_of(shape, predictors)
    progress = FallingBehind(segmenter, predictors)
    cases = find_cases(folder, channels=shape.scan.channels)
    report = FolderRun(segmenter, output, BatchOptions(), progress).segment(cases)
    assert report.cases[0].status == "ok", report.cases[0].error


def estimated_bytes(folder: Path, shape: RecipeShape) -> int:
    segmenter = segmenter_of(shape, shape.predictors())
    case = find_cases(folder, channels=shape.scan.channels)[0]
    estimate = segmenter.estimate(read_volume_header(case.channels, "SimpleITKIO"), saves_probabilities=False)
    segmenter.close()
    return estimate.peak_bytes


def measured(shape: RecipeShape, root: Path) -> dict[str, int]:
    write_scan(root / "small", shape.scan, (40, 40, 20))
    write_scan(root / "scan", shape.scan, shape.scan.voxels)
    segment(root / "small", root / "out_small", shape)  # loads what is loaded once
    estimate = estimated_bytes(root / "scan", shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status_bytes("VmRSS")
    segment(root / "scan", root / "out", shape)
    return {"estimate": estimate, "peak": status_bytes("VmHWM") - before}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--alone", metavar="MEMBER", help="this member by itself")
    words = parser.parse_args()
    shape = RECIPES[words.name]
    if words.alone:
        shape = RecipeShape(shape.scan, {words.alone: shape.specs[words.alone]}, model(words.alone))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(shape, Path(folder))))
