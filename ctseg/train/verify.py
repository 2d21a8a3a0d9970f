"""Check a data set: every problem at once, then nnU-Net's own check; no torch unless nnU-Net is there."""

import contextlib
import importlib.util
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ctseg.compiled.cpus import usable_cpus
from ctseg.files.dataset_cases import DatasetCases, DatasetProblem, LabelledCase, listed_dataset_cases
from ctseg.files.grid import ChannelVolume
from ctseg.files.nnunet_names import find_dataset_cases
from ctseg.stages import stage
from ctseg.train.description import FILE, Declared, misnamed_channels, number_ranges, read_declared, values_of
from ctseg.train.groups import FOLDS, too_few
from ctseg.train.problem_lines import counted, listed, problem_lines
from ctseg.train.scans import (
    geometry_problems,
    image_problems,
    label_counts,
    label_problems,
    read_header_or_tell,
    read_or_tell,
)
from ctseg.train.worker_pools import pools_that_end

_NAMES_TOLD = 10
"""Cases, or labels, that a note lists."""


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
        lines = problem_lines(self.problems, kinds=True)
        lines += [f"note: {note}" for note in self.notes]
        state = counted(len(self.problems), "problem") if self.problems else "no problems"
        return "\n  ".join([f"{self.dataset}: {counted(self.cases, 'case')}, {state}", *lines])

    def to_json(self) -> str:
        """Return the report for programs."""
        return json.dumps({"ok": not self.problems, **asdict(self)}, indent=2)


@pools_that_end()
def verify_dataset(
    folder: Path, *, nnunet_check: bool = True, images: bool = True, workers: int | None = None
) -> VerifyReport:
    """Check a data set of nnU-Net, and tell all that is wrong with it at once.

    nnU-Net's own check stops at its first finding, so it runs last, once nothing else is wrong.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_Name``.
        nnunet_check: Also run nnU-Net's own check, where nnU-Net is installed.
        images: Also read the voxels of the images; otherwise their headers only. Label maps are always read.
        workers: Threads that read files, and processes of nnU-Net's check; None takes up to four.
    """
    declared, problems = read_declared(folder / FILE)
    if declared is None:
        return VerifyReport(folder.name, 0, tuple(problems), ())
    found = cases_in(folder, declared)
    problems += found.problems
    count = len(found.cases)
    if declared.number not in (None, count) and (count or not found.problems):
        text = f"{FILE}: numTraining is {declared.number}, found {count} training cases: write {count}"
        problems.append(DatasetProblem(None, "num_training", text))
    threads = workers or min(4, usable_cpus())
    checked = _checked(found.cases, declared, threads, images=images)
    problems += [problem for case in checked for problem in case.problems]
    notes = _notes(count, checked)
    notes += misnamed_channels(declared.channel_names or ())
    unused = _unused(declared, checked)
    if unused and not any(case.values - {0} for case in checked if case.values is not None):
        names = listed(unused, most=_NAMES_TOLD)
        text = f"no label map holds anything but background, and the data set has the labels {names}"
        problems.append(DatasetProblem(None, "unused_label", text))
    elif unused:
        notes.append(
            f"no label map has {listed(unused, most=_NAMES_TOLD)}: a model learns nothing of what is never there"
        )
    if nnunet_check and not problems:
        note, own = _nnunet_check(folder, threads)
        notes.append(note)
        problems += own
    return VerifyReport(folder.name, count, tuple(problems), tuple(notes))


@dataclass(frozen=True)
class _CheckedCase:
    """What was found in the files of a case.

    Attributes:
        name: Of the case.
        problems: What is wrong.
        values: In its label map; None where there is none that can be read.
    """

    name: str
    problems: tuple[DatasetProblem, ...]
    values: frozenset[int] | None


def cases_in(folder: Path, declared: Declared) -> DatasetCases:
    """Return the training cases of a data set, by name or as its ``dataset.json`` lists them.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_Name``.
        declared: What its ``dataset.json`` says.

    Raises:
        InputError: A folder cannot be read.
    """
    if declared.cases is not None:
        return listed_dataset_cases(folder, declared.cases)
    channels = len(declared.channel_names or ("CT",))
    return find_dataset_cases(folder, file_ending=declared.file_ending, channels=channels)


def _checked(cases: Sequence[LabelledCase], declared: Declared, threads: int, *, images: bool) -> list[_CheckedCase]:
    """Look into the files of the cases, several at once."""
    values = None if declared.labels is None else values_of(declared.labels)
    checked: list[_CheckedCase] = []
    with ThreadPoolExecutor(threads) as pool, stage("checking", len(cases), unit="cases") as progress:
        for case in pool.map(lambda case: _check_case(case, values, images=images), cases):
            checked.append(case)
            progress.advance()
    return checked


def _unused(declared: Declared, checked: Sequence[_CheckedCase]) -> list[str]:
    """Return the labels that no label map has; none where label maps are missing or cannot be read."""
    if declared.labels is None or not checked or any(case.values is None for case in checked):
        return []
    unused = values_of(declared.labels) - {value for case in checked for value in case.values or ()} - {0}
    return [
        f"{name} ({number_ranges(values)})"
        for name, value in declared.labels.items()
        if (values := values_of({name: value}) & unused)
    ]


def _notes(count: int, checked: Sequence[_CheckedCase]) -> list[str]:
    notes = []
    if empty := [case.name for case in checked if case.values is not None and not case.values - {0}]:
        maps = "1 label map holds" if len(empty) == 1 else f"{len(empty)} label maps hold"
        notes.append(
            f"{maps} nothing but background: {listed(empty, most=_NAMES_TOLD)}; right where nothing is to be found"
        )
    if 0 < count < FOLDS:
        notes.append(too_few(count))
    return notes


def _check_case(case: LabelledCase, declared: set[int] | None, *, images: bool) -> _CheckedCase:
    problems: list[DatasetProblem] = []
    label, values = None, None
    if case.label is not None:
        label, problems = read_or_tell(case.label, case=case.name)
    if label is not None:
        if declared is not None:
            problems += label_problems(label.voxels, declared, case=case.name, stored=label.stored_dtype)
        values = frozenset(int(value) for value in label_counts(label.voxels) if value == int(value))
    for i, files in enumerate(case.channels):
        if files is None:
            continue
        what = "image" if len(case.channels) == 1 else f"channel {i}"
        image, unreadable = (read_or_tell if images else read_header_or_tell)(files, case=case.name)
        problems += unreadable
        if isinstance(image, ChannelVolume):
            problems += image_problems(image, label, case=case.name, file=files.name, what=what)
        elif image is not None and label is not None:
            problems += geometry_problems(image, label, case=case.name, what=what)
    return _CheckedCase(case.name, tuple(problems), values)


def _nnunet_check(folder: Path, workers: int) -> tuple[str, list[DatasetProblem]]:
    if importlib.util.find_spec("nnunetv2") is None:
        return "nnU-Net's own check did not run: nnunetv2 is not installed (docs/install.md)", []
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), stage("nnU-Net's own check"):
            verify_dataset_integrity(str(folder), workers)
    # what nnU-Net raises here has no class of its own
    except (AssertionError, RuntimeError, OSError) as error:
        return "nnU-Net's own check ran", [
            DatasetProblem(None, "nnunet", f"nnU-Net's own check: {error}\n{said.getvalue()}")
        ]
    return "nnU-Net's own check found nothing", []
