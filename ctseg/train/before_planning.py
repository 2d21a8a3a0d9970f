"""What is looked at before a data set is planned, and the folds that its cases come into."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.errors import InputError
from ctseg.train.description import FILE, read_declared
from ctseg.train.groups import (
    FOLDS,
    SPLITS_FILE,
    group_cases,
    grouped_splits,
    read_splits,
    replace_splits,
    require_splits_of,
    too_few,
)
from ctseg.train.verify import cases_in, verify_dataset

if TYPE_CHECKING:
    from ctseg.train.planning import Planning

_log = logging.getLogger(__name__)


def require_sound(raw: Path, planning: "Planning") -> None:
    """Refuse a data set with problems: names, ``dataset.json``, headers and label maps; the rest where that is asked.

    Args:
        raw: The data set's raw folder.
        planning: Says how much is looked at.

    Raises:
        InputError: The data set has problems; all of them are told.
    """
    if not planning.check and not planning.verify:
        return
    report = verify_dataset(raw, nnunet_check=planning.verify, images=planning.verify)
    if report.problems:
        raise InputError(f"nothing was planned, mend the data set first:\n{report}", settings=("check",))
    for note in report.notes:
        if note != too_few(report.cases):
            _log.warning("%s: %s", raw.name, note)


def settle_folds(raw: Path, preprocessed: Path, planning: "Planning", trained: Sequence[str]) -> None:
    """Put folds in place that keep groups together or came with the data set; else nnU-Net draws them at a training.

    Args:
        raw: The data set's raw folder.
        preprocessed: Its folder of plans.
        planning: Says which cases belong together.
        trained: Models that were trained on the folds that are there.

    Raises:
        InputError: Groups or folds do not fit the cases.
        TrainingError: Other folds are there.
    """
    declared, _ = read_declared(raw / FILE)
    if declared is None:
        return
    cases = [case.name for case in cases_in(raw, declared).cases]
    file, given = preprocessed / SPLITS_FILE, raw / SPLITS_FILE
    if planning.group_by is not None:
        splits = grouped_splits(group_cases(cases, planning.group_by))
        places = (given, file) if given.is_file() else (file,)  # nnU-Net refuses two that differ
        preprocessed.mkdir(parents=True, exist_ok=True)
        for place in places:
            replace_splits(place, splits, trained=trained, overwrite=planning.overwrite)
        _log.info("%s: %d folds that keep groups together", file, len(splits))
        return
    for place in (given, file):
        require_splits_of(place, cases)
    if given.is_file() and file.is_file():
        replace_splits(file, read_splits(given), trained=trained, overwrite=planning.overwrite)
    if 0 < len(cases) < FOLDS and not given.is_file() and not file.is_file():
        _log.warning("%s: %s", raw.name, too_few(len(cases)))
