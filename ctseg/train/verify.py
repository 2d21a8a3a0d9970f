"""Check a data set: every problem at once, then nnU-Net's own check; no torch unless nnU-Net is there."""

import contextlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.errors import InputError
from ctseg.train.dataset import declared_label_problems, values_of
from ctseg.train.scans import Problem, geometry_problems, label_problems, read_scan

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")


@dataclass(frozen=True)
class VerifyReport:
    """What a check found.

    Attributes:
        dataset: Name of the folder.
        cases: Number of training cases.
        problems: What has to be mended.
        notes: What is worth knowing.
    """

    dataset: str
    cases: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"  [{problem.kind}] {problem.message}" for problem in self.problems]
        lines += [f"  note: {note}" for note in self.notes]
        state = f"{len(self.problems)} problems" if self.problems else "no problems"
        return "\n".join([f"{self.dataset}: {self.cases} cases, {state}", *lines])

    def to_json(self) -> str:
        """Return the report for programs."""
        return json.dumps({"ok": not self.problems, **asdict(self)}, indent=2)


@dataclass(frozen=True)
class _Case:
    name: str
    images: tuple[Path, ...]
    label: Path


def verify_dataset(folder: Path, *, nnunet_check: bool = True, workers: int | None = None) -> VerifyReport:
    """Check a data set of nnU-Net, and tell all that is wrong with it at once.

    nnU-Net's own check stops at its first finding, so it runs last, once nothing else is wrong.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_Name``.
        nnunet_check: Also run nnU-Net's own check, where nnU-Net is installed.
        workers: Threads that read files, and processes of nnU-Net's check; None takes up to four.
    """
    content, problems = _dataset_json(folder)
    notes: list[str] = []
    if content is None:
        return VerifyReport(folder.name, 0, tuple(problems), ())
    cases, found = _cases(folder, content)
    problems += found
    if (number := content.get("numTraining")) is not None and number != len(cases):
        problems.append(
            Problem(None, "num_training", f"dataset.json: numTraining is {number!r}, found {len(cases)} training cases")
        )
    labels = content.get("labels")
    declared = values_of(labels) if isinstance(labels, Mapping) else set()
    threads = workers or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        checked = list(pool.map(lambda case: _check_case(case, declared), cases))
    seen: set[int] = set()
    for case_problems, values in checked:
        problems += case_problems
        seen |= values
    unused = sorted(declared - seen - {0})
    if cases and unused:
        names = [name for name, value in content["labels"].items() if values_of({name: value}) & set(unused)]
        problems.append(
            Problem(None, "unused_label", f"dataset.json: labels {unused} ({', '.join(names)}) are in no label map")
        )
    if 0 < len(cases) < 5:
        notes.append(f"{len(cases)} cases are fewer than the five folds of nnU-Net's cross-validation need")
    if nnunet_check and not problems:
        note, own = _nnunet_check(folder, threads)
        notes.append(note)
        problems += own
    return VerifyReport(folder.name, len(cases), tuple(problems), tuple(notes))


def _dataset_json(folder: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    file = folder / "dataset.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [Problem(None, "dataset_json", f"{file}: cannot be read ({error.strerror})")]
    except ValueError as error:
        return None, [Problem(None, "dataset_json", f"{file}: not JSON: {error}")]
    if not isinstance(content, dict):
        return None, [Problem(None, "dataset_json", f"{file}: expected an object, found {type(content).__name__}")]
    problems = [
        Problem(None, "dataset_json", f"dataset.json: {key!r} is missing")
        for key in REQUIRED_KEYS
        if key not in content
    ]
    labels = content.get("labels")
    if isinstance(labels, Mapping):
        try:
            problems += declared_label_problems(labels, content.get("regions_class_order"))
        except (TypeError, ValueError) as error:
            problems.append(Problem(None, "labels", f"dataset.json: labels are not numbers by name: {error}"))
            content["labels"] = {}
    return content, problems


def _cases(folder: Path, content: Mapping[str, Any]) -> tuple[list[_Case], list[Problem]]:
    ending = str(content.get("file_ending", ".nii.gz"))
    channels = len(content.get("channel_names", {"0": ""}))
    if "dataset" in content:
        return _listed_cases(folder, content["dataset"])
    problems = [
        Problem(None, "dataset_json", f"{folder / part} is missing")
        for part in ("imagesTr", "labelsTr")
        if not (folder / part).is_dir()
    ]
    if problems:
        return [], problems
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    images: dict[str, dict[int, Path]] = {}
    for file in sorted((folder / "imagesTr").iterdir()):
        if match := pattern.fullmatch(file.name):
            images.setdefault(match[1], {})[int(match[2])] = file
        elif not file.name.startswith("."):
            problems.append(
                Problem(None, "surplus_file", f"imagesTr/{file.name}: expected names like case_0000{ending}")
            )
    labels = {}
    for file in sorted((folder / "labelsTr").iterdir()):
        if file.name.endswith(ending) and not file.name.startswith("."):
            labels[file.name[: -len(ending)]] = file
        elif not file.name.startswith("."):
            problems.append(Problem(None, "surplus_file", f"labelsTr/{file.name}: expected names like case{ending}"))
    cases = []
    for name in sorted(set(images) | set(labels)):
        if name not in labels:
            problems.append(Problem(name, "missing_label_file", f"case {name}: no labelsTr/{name}{ending}"))
        elif name not in images:
            problems.append(Problem(name, "surplus_label_file", f"case {name}: a label map without an image"))
            continue
        found = set(images[name])
        if missing := sorted(set(range(channels)) - found):
            problems.append(
                Problem(name, "missing_channel", f"case {name}: channels {missing} of {channels} are missing")
            )
        if surplus := sorted(found - set(range(channels))):
            problems.append(
                Problem(name, "surplus_channel", f"case {name}: channels {surplus} are not in channel_names")
            )
        cases.append(
            _Case(
                name,
                tuple(file for _, file in sorted(images[name].items())),
                labels.get(name, folder / "labelsTr" / f"{name}{ending}"),
            )
        )
    return cases, problems


def _listed_cases(folder: Path, listed: Mapping[str, Any]) -> tuple[list[_Case], list[Problem]]:
    cases, problems = [], []
    for name, files in sorted(listed.items()):
        images = tuple(folder / os.path.expandvars(file) for file in files["images"])
        label = folder / os.path.expandvars(files["label"])
        problems += [
            Problem(name, "missing_file", f"case {name}: {file} is missing")
            for file in (*images, label)
            if not file.is_file()
        ]
        cases.append(_Case(name, images, label))
    return cases, problems


def _check_case(case: _Case, declared: set[int]) -> tuple[list[Problem], set[int]]:
    problems: list[Problem] = []
    label = None
    values: set[int] = set()
    if case.label.is_file():
        try:
            label = read_scan(case.label)
        except InputError as error:
            problems.append(Problem(case.name, "unreadable", f"case {case.name}: {error}"))
    if label is not None:
        problems += label_problems(label.voxels, declared, case=case.name, stored=label.dtype)
        finite = label.voxels[np.isfinite(label.voxels)]
        values = {int(value) for value in np.unique(finite) if value == int(value)}
    for i, file in enumerate(case.images):
        if not file.is_file():
            continue
        try:
            image = read_scan(file)
        except InputError as error:
            problems.append(Problem(case.name, "unreadable", f"case {case.name}: {error}"))
            continue
        what = "image" if len(case.images) == 1 else f"channel {i}"
        if bad := image.non_finite:
            problems.append(
                Problem(case.name, "nan", f"case {case.name}: {bad} voxels of {file.name} are NaN or infinite")
            )
        if label is not None:
            problems += geometry_problems(image, label, case=case.name, what=what)
    return problems, values


def _nnunet_check(folder: Path, workers: int) -> tuple[str, list[Problem]]:
    if importlib.util.find_spec("nnunetv2") is None:
        return "nnU-Net's own check did not run: nnunetv2 is not installed (`pip install ctseg[train]`)", []
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            verify_dataset_integrity(str(folder), workers)
    # what nnU-Net raises here has no class of its own
    except (AssertionError, RuntimeError, OSError) as error:
        return "nnU-Net's own check ran", [Problem(None, "nnunet", f"nnU-Net's own check: {error}\n{said.getvalue()}")]
    return "nnU-Net's own check found nothing", []
