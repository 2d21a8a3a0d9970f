"""Check a data set: every problem at once, then nnU-Net's own check; no torch unless nnU-Net is there."""

import contextlib
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.compiled.cpus import usable_cpus
from ctseg.files.dataset_cases import (
    DatasetCases,
    DatasetProblem,
    LabelledCase,
    find_dataset_cases,
    listed_dataset_cases,
)
from ctseg.train.dataset import FILE_ENDING, declared_label_problems, values_of
from ctseg.train.scans import image_problems, label_problems, read_or_tell

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
    problems: tuple[DatasetProblem, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"  [{problem.kind}] {problem.message}" for problem in self.problems]
        lines += [f"  note: {note}" for note in self.notes]
        state = f"{len(self.problems)} problems" if self.problems else "no problems"
        return "\n".join([f"{self.dataset}: {self.cases} cases, {state}", *lines])

    def to_json(self) -> str:
        """Return the report for programs."""
        return json.dumps({"ok": not self.problems, **asdict(self)}, indent=2)


def verify_dataset(folder: Path, *, nnunet_check: bool = True, workers: int | None = None) -> VerifyReport:
    """Check a data set of nnU-Net, and tell all that is wrong with it at once.

    nnU-Net's own check stops at its first finding, so it runs last, once nothing else is wrong.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_Name``.
        nnunet_check: Also run nnU-Net's own check, where nnU-Net is installed.
        workers: Threads that read files, and processes of nnU-Net's check; None takes up to four.
    """
    content, problems = dataset_json(folder)
    if content is None:
        return VerifyReport(folder.name, 0, tuple(problems), ())
    found = cases_in(folder, content)
    problems += found.problems
    if (number := content.get("numTraining")) is not None and number != len(found.cases):
        text = f"dataset.json: numTraining is {number!r}, found {len(found.cases)} training cases"
        problems.append(DatasetProblem(None, "num_training", text))
    threads = workers or min(4, usable_cpus())
    problems += _content_problems(found.cases, content.get("labels"), threads)
    notes: list[str] = []
    if 0 < len(found.cases) < 5:
        notes.append(f"{len(found.cases)} cases are fewer than the five folds of nnU-Net's cross-validation need")
    if nnunet_check and not problems:
        note, own = _nnunet_check(folder, threads)
        notes.append(note)
        problems += own
    return VerifyReport(folder.name, len(found.cases), tuple(problems), tuple(notes))


def _content_problems(cases: Sequence[LabelledCase], labels: Any, threads: int) -> list[DatasetProblem]:
    """Return what is wrong with the voxels of the cases and with the labels that none of them has."""
    declared = values_of(labels) if isinstance(labels, Mapping) else set()
    with ThreadPoolExecutor(threads) as pool:
        checked = list(pool.map(lambda case: _check_case(case, declared), cases))
    problems = [problem for case_problems, _ in checked for problem in case_problems]
    seen = {value for _, values in checked for value in values}
    unused = sorted(declared - seen - {0})
    if cases and unused:
        names = ", ".join(name for name, value in labels.items() if values_of({name: value}) & set(unused))
        text = f"dataset.json: labels {unused} ({names}) are in no label map"
        problems.append(DatasetProblem(None, "unused_label", text))
    return problems


def dataset_json(folder: Path) -> tuple[dict[str, Any] | None, list[DatasetProblem]]:
    """Return what ``dataset.json`` of a data set says, None where it cannot be read, and what is wrong with it."""
    file = folder / "dataset.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [DatasetProblem(None, "dataset_json", f"{file}: cannot be read ({error.strerror})")]
    except ValueError as error:
        return None, [DatasetProblem(None, "dataset_json", f"{file}: not JSON: {error}")]
    if not isinstance(content, dict):
        return None, [
            DatasetProblem(None, "dataset_json", f"{file}: expected an object, found {type(content).__name__}")
        ]
    problems = [
        DatasetProblem(None, "dataset_json", f"dataset.json: {key!r} is missing")
        for key in REQUIRED_KEYS
        if key not in content
    ]
    labels = content.get("labels")
    if isinstance(labels, Mapping):
        try:
            problems += declared_label_problems(labels, content.get("regions_class_order"))
        except (TypeError, ValueError) as error:
            problems.append(DatasetProblem(None, "labels", f"dataset.json: labels are not numbers by name: {error}"))
            content["labels"] = {}
    return content, problems


def cases_in(folder: Path, content: Mapping[str, Any]) -> DatasetCases:
    """Find the training cases of a data set, by the names that its ``dataset.json`` says or by nnU-Net's."""
    if "dataset" in content:
        return listed_dataset_cases(folder, content["dataset"])
    return find_dataset_cases(
        folder,
        file_ending=str(content.get("file_ending", FILE_ENDING)),
        channels=len(content.get("channel_names", {"0": ""})),
    )


def _check_case(case: LabelledCase, declared: set[int]) -> tuple[list[DatasetProblem], set[int]]:
    """Return what is wrong with a case, and the values in its label map."""
    problems: list[DatasetProblem] = []
    label, values = None, set()
    if case.label is not None:
        label, problems = read_or_tell(case.label, case=case.name)
    if label is not None:
        problems += label_problems(label.voxels, declared, case=case.name, stored=label.stored_dtype)
        finite = label.voxels[np.isfinite(label.voxels)]
        values = {int(value) for value in np.unique(finite) if value == int(value)}
    for i, files in enumerate(case.channels):
        if files is None:
            continue
        image, unreadable = read_or_tell(files, case=case.name)
        problems += unreadable
        if image is not None:
            what = "image" if len(case.channels) == 1 else f"channel {i}"
            problems += image_problems(image, label, case=case.name, file=files.name, what=what)
    return problems, values


def _nnunet_check(folder: Path, workers: int) -> tuple[str, list[DatasetProblem]]:
    if importlib.util.find_spec("nnunetv2") is None:
        return "nnU-Net's own check did not run: nnunetv2 is not installed (docs/install.md)", []
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            verify_dataset_integrity(str(folder), workers)
    # what nnU-Net raises here has no class of its own
    except (AssertionError, RuntimeError, OSError) as error:
        return "nnU-Net's own check ran", [
            DatasetProblem(None, "nnunet", f"nnU-Net's own check: {error}\n{said.getvalue()}")
        ]
    return "nnU-Net's own check found nothing", []
