"""What trainings go on with: their plans and preprocessed cases do not become others by accident."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.errors import TrainingError
from ctseg.train.swin_planner import ESTIMATE_KEY


@dataclass(frozen=True)
class InUse:
    """What the trainings of a data set go on with.

    Attributes:
        plans: The folder of a trained model, by the name of its plans.
        data: The folder of a trained model, by the data identifier of its preprocessed cases.
    """

    plans: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)


def find_in_use(dataset: str, preprocessed: Path, results: Path | None) -> InUse:
    """Return what the trainings of a data set go on with.

    Args:
        dataset: ``DatasetXXX_Name``.
        preprocessed: The data set's folder of plans and preprocessed cases.
        results: nnU-Net's folder of trained models; None where there is none.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, data = {}, {}
    for model in sorted((results / dataset).glob("*__*__*")) if results is not None else ():
        parts = model.name.split("__")
        if len(parts) != 3 or not any(model.glob("fold_*/checkpoint_*.pth")):
            continue
        file = preprocessed / f"{parts[1]}.json"
        if not file.is_file():
            continue
        plans[parts[1]] = model.name
        manager = PlansManager(json.loads(file.read_text()))
        if parts[2] in manager.available_configurations:
            data[manager.get_configuration(parts[2]).data_identifier] = model.name
    return InUse(plans, data)


def changes_of_data_set(raw: Path, preprocessed: Path, in_use: InUse) -> list[str]:
    """Return what has become of a raw data set since the cases that are in use were made from it.

    Args:
        raw: The data set's raw folder.
        preprocessed: The data set's folder of plans and preprocessed cases.
        in_use: What trainings go on with.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    dataset = json.loads((raw / "dataset.json").read_text())
    former = preprocessed / "dataset.json"
    if former.is_file() and json.loads(former.read_text()) != dataset:
        return [f"dataset.json of {raw} is not that in {preprocessed}"]
    cases = get_filenames_of_train_images_and_targets(str(raw), dataset)
    changed = {
        case: max(Path(file).stat().st_mtime for file in (*files["images"], files["label"]))
        for case, files in cases.items()
    }
    problems = []
    for identifier in sorted(in_use.data):
        if not (preprocessed / identifier).is_dir():
            continue
        # nnU-Net writes it last
        made = {file.stem: file.stat().st_mtime for file in (preprocessed / identifier).glob("*.pkl")}
        if missing := sorted(set(cases) - set(made)):
            problems.append(f"{identifier} has no {', '.join(missing[:5])} ({len(missing)} cases of {raw})")
        if newer := [case for case in cases if case in made and changed[case] > made[case]]:
            problems.append(f"{identifier} is older than the files of {', '.join(newer[:5])} ({len(newer)} cases)")
    return problems


def changes_of_plans(file: Path, plans: Mapping[str, Any]) -> list[str]:
    """Return what new plans would change in the plans that are there.

    Args:
        file: The plans that are there.
        plans: The new ones.
    """
    before, now = json.loads(file.read_text()), json.loads(json.dumps(plans))
    former: dict[str, Any] = before["configurations"]
    changes = _changes(file.stem, before, {**now, "configurations": former})
    for name, found in now["configurations"].items():
        changes += _changes(f"{file.stem} {name}", former.get(name, {}), found)
    return changes


def _changes(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    # the estimate names the memory that was asked for, which changes nothing by itself
    keys = sorted(key for key in {*before, *now} - {ESTIMATE_KEY} if before.get(key) != now.get(key))
    return [
        f"{where}: {key} {before.get(key)} -> {now.get(key)}"
        if len(str(before.get(key))) < 40
        else f"{where}: another {key}"
        for key in keys
    ]


def require_nothing_changed(dataset: str, in_use: InUse, changes: Sequence[str]) -> None:
    """Do nothing where there are no changes.

    Raises:
        TrainingError: There are; trainings could not go on with them.
    """
    if changes:
        models = sorted({*in_use.plans.values(), *in_use.data.values()})
        raise TrainingError(
            f"{dataset}: {', '.join(models)} could not go on with what would change: {'; '.join(changes)}. "
            "Nothing was changed. Overwriting plans and preprocesses anew all the same: train again then",
            settings=("overwrite",),
        )
