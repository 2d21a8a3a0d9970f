"""Which of several trained models in a zip or folder is meant: asked by name, or the best by nnU-Net's own figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import CheckpointError
from ctseg.nnunet.results_folder import ANY_MODEL, Choice, read_json, require_one_dataset, trained_models, unpacked

BEST = "best"
"""In place of a configuration's name: what nnU-Net's own comparison chose, else the highest validation Dice."""


@dataclass(frozen=True)
class Chosen:
    """Trained models of one zip or folder.

    Attributes:
        choices: One model; or several that nnU-Net averages, in its order.
        why: For people; empty where there was nothing to choose.
    """

    choices: tuple[Choice, ...]
    why: str = ""


def choose(path: Path, configurations: Sequence[str] = (), wanted: Choice = ANY_MODEL) -> Chosen:
    """Return which trained models are meant.

    Args:
        path: Results folder, or nnU-Net's zip; nothing but its JSON documents is read.
        configurations: Names; more than one are an ensemble; :data:`BEST` alone takes the best; none: the only one.
        wanted: Trainer and plans, where there are several.

    Raises:
        CheckpointError: There is none, or there are several and none was chosen; the message lists them, the best
            first.
    """
    if configurations and tuple(configurations) != (BEST,):
        return Chosen(tuple(Choice(wanted.trainer, wanted.plans, name) for name in configurations))
    with unpacked(path, documents_only=True) as root:
        folders = [folder for folder in trained_models(root) if wanted.fits(folder)]
        if len(folders) < 2:
            return Chosen((wanted,))
        require_one_dataset(folders, root, path)
        dice = {folder: _validation_dice(folder) for folder in folders}
        folders.sort(key=lambda folder: (-(dice[folder] or 0.0), folder.name))
        if not configurations:
            listed = ", ".join(_described(folder, dice[folder]) for folder in folders)
            raise CheckpointError(
                f"{path}: {len(folders)} trained models: {listed}: choose a configuration, or take {BEST!r}",
                settings=("configuration", "trainer", "plans"),
            )
        if (selected := _selected(folders)) is not None:
            return selected
        best = folders[0]
        if dice[best] is None:
            names = ", ".join(folder.name for folder in folders)
            raise CheckpointError(
                f"{path}: nothing in it says which of {names} is the best: choose a configuration",
                settings=("configuration",),
            )
        return Chosen((_choice_of(best.name),), f"{best.name}: the highest validation Dice, {dice[best]:.4f}")


def _choice_of(name: str) -> Choice:
    trainer, plans, configuration = (*name.split("__"), "", "")[:3]
    return Choice(trainer, plans, configuration)


def _described(folder: Path, dice: float | None) -> str:
    return folder.name if dice is None else f"{folder.name} (validation Dice {dice:.4f})"


def _validation_dice(folder: Path) -> float | None:
    """Return the mean foreground Dice over the folds that say theirs."""
    found = [_dice_in(file) for file in sorted(folder.glob("fold_*/validation/summary.json"))]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _dice_in(summary: Path) -> float | None:
    mean = read_json(summary).get("foreground_mean")
    value = mean.get("Dice") if isinstance(mean, dict) else None
    return float(value) if isinstance(value, int | float) and value == value else None  # NaN: no label was there


def _selected(folders: Sequence[Path]) -> Chosen | None:
    """Return what nnU-Net's comparison selected, if it stands beside the models and they are there."""
    file = folders[0].parent / "inference_information.json"
    if not file.is_file():
        return None
    best: Any = read_json(file).get("best_model_or_ensemble")
    models = best.get("selected_model_or_models") if isinstance(best, dict) else None
    if not isinstance(models, list) or not models or not all(isinstance(model, dict) for model in models):
        return None
    names = [f"{m.get('trainer')}__{m.get('plans_identifier')}__{m.get('configuration')}" for m in models]
    if not set(names) <= {folder.name for folder in folders}:
        return None
    return Chosen(tuple(map(_choice_of, names)), f"{' and '.join(names)}: chosen by nnU-Net's comparison")
