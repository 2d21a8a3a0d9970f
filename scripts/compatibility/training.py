"""What an older nnU-Net is asked to do in its own environment."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.compatibility.data import NAME, write_splits
from scripts.compatibility.environment import Workplace
from scripts.compatibility.kinds import BOTH_FOLDS, FLAT, FULL, PLANS, Kind, Training, kinds_of

TOTALSEGMENTATOR = Path("nnunet/results/Dataset297_TotalSegmentator_total_3mm_1559subj")
"""Where TotalSegmentator keeps a model, below its own folder."""


def train_all(place: Workplace, scan: Path) -> None:
    """Plan, train, predict and zip with the release itself.

    Raises:
        RuntimeError: It failed.
    """
    kinds = kinds_of(place.nnunet)
    if not (place.preprocessed / NAME / "splits_final.json").exists():
        write_splits(place.preprocessed)
    for folder in (place.folder / "archives", place.folder / "predictions"):
        folder.mkdir(parents=True, exist_ok=True)
    trainings = list(dict.fromkeys(training for kind in kinds for training in kind.trainings))
    job = {
        "dataset": NAME,
        "memory_gb": place.nnunet.memory_gb,
        "planners": ["ExperimentPlanner", place.nnunet.residual_planner],
        "trainings": [_words(training) for training in trainings],
        "ensemble": {
            "trainer": FULL.trainer,
            "plans": PLANS,
            "configurations": [FLAT.configuration, FULL.configuration],
            "folds": BOTH_FOLDS,
        },
        "archives": dict(_archives(place, kinds)),
        "predictions": list(_predictions(place, kinds)),
        "scan": str(scan),
    }
    file = place.folder / "job.json"
    file.write_text(json.dumps(job, indent=1), encoding="utf-8")
    place.run_inside(Path(__file__).with_name("inside.py"), file, log=place.folder / "nnunet.log")
    _lay_out_as_totalsegmentator(place, kinds)


def own_prediction(place: Workplace, kind: Kind) -> Path:
    """Return the file of the labels that the release itself predicts."""
    return place.folder / "predictions" / f"{'+'.join(member.folder_name for member in kind.members)}.npy"


def archive_of(place: Workplace, kind: Kind) -> Path:
    """Return the zip of a kind."""
    return place.folder / "archives" / f"{kind.key}.zip"


def members_of(place: Workplace, kind: Kind) -> list[list[dict[str, Any]]]:
    """Return the trained folders of each member's stages, in the words of ``inside.predict``."""
    return [
        [{"folder": str(place.results / NAME / stage.folder_name), "folds": stage.folds} for stage in member.stages]
        for member in kind.members
    ]


def postprocessing_of(place: Workplace, kind: Kind) -> str | None:
    """Return what nnU-Net found for an ensemble."""
    if len(kind.members) == 1:
        return None
    names = "___".join(member.folder_name for member in kind.members)
    folds = "_".join(map(str, BOTH_FOLDS))
    return str(place.results / NAME / "ensembles" / f"ensemble___{names}___{folds}" / "postprocessing.pkl")


def totalsegmentator_folder(place: Workplace) -> Path:
    """Return a folder as TotalSegmentator's own."""
    return place.folder / "totalsegmentator"


def _words(training: Training) -> dict[str, Any]:
    return {name: value for name, value in asdict(training).items() if name != "first"}


def _archives(place: Workplace, kinds: tuple[Kind, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in kinds:
        if kind.source == "archive":
            first = kind.members[0]
            yield (
                str(archive_of(place, kind)),
                {
                    "trainer": first.trainer,
                    "plans": first.plans,
                    "configurations": [training.configuration for training in kind.trainings],
                    "folds": first.folds,
                },
            )


def _predictions(place: Workplace, kinds: tuple[Kind, ...]) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        yield {
            "output": str(own_prediction(place, kind)),
            "members": members_of(place, kind),
            "postprocessing": postprocessing_of(place, kind),
        }


def _lay_out_as_totalsegmentator(place: Workplace, kinds: tuple[Kind, ...]) -> None:
    for kind in kinds:
        if kind.source == "totalsegmentator":
            (member,) = kind.members
            source = place.results / NAME / member.folder_name
            target = totalsegmentator_folder(place) / TOTALSEGMENTATOR / member.folder_name
            for name in ("plans.json", "dataset.json", "dataset_fingerprint.json", "fold_0/checkpoint_final.pth"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / name, target / name)
