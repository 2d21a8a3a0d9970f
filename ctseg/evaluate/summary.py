"""What an evaluation is written as: ``evaluation.json``, ``evaluation.csv`` and nnU-Net's ``summary.json``."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.evaluate.evaluation import EVALUATION_NAME, Evaluation, LabelScores, length_in_words
from ctseg.files.atomic import write_text
from ctseg.files.folders import make_folder
from ctseg.files.tables import csv_table

SUMMARY_NAME = "summary.json"
TABLE_NAME = "evaluation.csv"
_BACKGROUND = "0"
_METRICS = (
    ("Dice", "dice"), ("IoU", "iou"), ("FP", "fp"), ("TP", "tp"), ("FN", "fn"), ("TN", "tn"), ("n_pred", "n_pred"),
    ("n_ref", "n_ref"),
)  # fmt: skip
"""nnU-Net's words, in its order, and ours."""
_COLUMNS = ("dice", "iou", "hd95_mm", "assd_mm")
_LAST_COLUMNS = ("volume_ml", "reference_volume_ml", "tp", "fp", "fn", "tn", "n_pred", "n_ref")


def summary_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of nnU-Net's ``summary.json``: overlap by case and label, means over cases and over labels.

    Args:
        evaluation: With at least one case.

    Source:
        nnU-Net's ``compute_metrics_on_folder``: ``mean`` leaves NaN out, ``foreground_mean`` does not.
    """
    keys = {evaluation.keys[name]: name for name in evaluation.labels}
    mean = {
        key: {
            word: nan_mean([getattr(case.labels[name], ours) for case in evaluation.cases]) for word, ours in _METRICS
        }
        for key, name in keys.items()
    }
    foreground = [means for key, means in mean.items() if key != _BACKGROUND]
    return {
        "metric_per_case": [
            {
                "reference_file": case.reference_file,
                "prediction_file": case.prediction_file,
                "metrics": {key: _overlap(case.labels[name]) for key, name in keys.items()},
            }
            for case in evaluation.cases
        ],
        "mean": mean,
        "foreground_mean": {
            word: float(np.mean([means[word] for means in foreground])) if foreground else math.nan
            for word, _ in _METRICS
        },
    }


def nan_mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN where all are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means over nothing
        return float(np.nanmean(values)) if values else math.nan


def _overlap(scores: LabelScores) -> dict[str, float | int]:
    return {word: getattr(scores, ours) for word, ours in _METRICS}


def table_of(evaluation: Evaluation) -> str:
    """Return ``evaluation.csv``: a line for each label of each case; ``nan`` and ``inf`` are what they say."""
    tolerances = [f"nsd_{length_in_words(tolerance)}mm" for tolerance in evaluation.tolerances_mm]
    rows: list[list[object]] = [["case", "label", *_COLUMNS, *tolerances, *_LAST_COLUMNS, "surface_definition"]]
    definition = evaluation.surface_definition.partition(":")[0]
    for case in evaluation.cases:
        for name, scores in case.labels.items():
            first, last = ([getattr(scores, column) for column in part] for part in (_COLUMNS, _LAST_COLUMNS))
            rows.append([case.case, name, *first, *scores.nsd, *last, definition])
    return csv_table(rows)


def write_evaluation(evaluation: Evaluation, folder: Path, *, summary: Path | None = None) -> None:
    """Write ``evaluation.json`` and ``evaluation.csv``, and ``summary.json`` where a case was compared.

    Args:
        evaluation: What label maps score.
        folder: Where to; made if missing.
        summary: Where nnU-Net's goes; None: into the folder, as ``summary.json``.

    Raises:
        OutputError: They cannot be written.
    """
    make_folder(folder)
    write_text(folder / EVALUATION_NAME, evaluation.to_json() + "\n")
    write_text(folder / TABLE_NAME, table_of(evaluation))
    if evaluation.cases:
        text = json.dumps(summary_of(evaluation), sort_keys=True, indent=4)
        write_text(summary or folder / SUMMARY_NAME, text)
