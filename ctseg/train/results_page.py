"""The page of a data set's trainings: folds, their courses, and validated cases, the worst first."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.errors import CheckpointError, InputError
from ctseg.evaluate.compared_labels import ComparedLabels, labels_of_dataset
from ctseg.evaluate.evaluation import length_in_words
from ctseg.evaluate.pages.charts import Line, line_chart
from ctseg.evaluate.pages.colours import colours_of, css
from ctseg.evaluate.pages.rendering import number, render
from ctseg.files.atomic import write_text
from ctseg.nnunet.folds import Fold
from ctseg.nnunet.plans import foreground_names
from ctseg.nnunet.results_folder import read_json
from ctseg.nnunet.training_curve import TrainingCurve, read_training_curve
from ctseg.train.cross_validation import ModelResults, ResultsTable, TrainedModel
from ctseg.train.description import FILE, read_declared
from ctseg.train.epochs import duration
from ctseg.train.paths import NnunetPaths
from ctseg.train.validation_cases import ValidatedCase, ValidationFiles, validated_cases, with_pictures
from ctseg.train.verify import cases_in

if TYPE_CHECKING:
    from markupsafe import Markup

RESULTS_PAGE_NAME = "results.html"
_TRAINING, _VALIDATION, _MEAN, _MOVING = "#5b7fa6", "#c2553f", "#2b7a4b", "#93bfa3"
_MOST_LINES = 8
_MOST_COLUMNS = 6
_MOST_POINTS = 500


@dataclass(frozen=True)
class FoldCourse:
    """How far a fold has come.

    Attributes:
        fold: ``0`` …, or ``full``.
        curve: Its epochs; None where none is told of.
        names: Of labels or regions, in the order of the pseudo Dice.
    """

    fold: str
    curve: TrainingCurve | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class ModelLook:
    """One trained model as the page shows it.

    Attributes:
        results: Dice by fold and label.
        labels: Of the data set.
        courses: Of its folds.
        cases: Of its validations, the worst first.
    """

    results: ModelResults
    labels: ComparedLabels
    courses: tuple[FoldCourse, ...]
    cases: tuple[ValidatedCase, ...]


def look_at_results(
    paths: NnunetPaths,
    table: ResultsTable,
    models: Sequence[TrainedModel],
    *,
    on_case: Callable[[int, int], object] | None = None,
) -> list[ModelLook]:
    """Read what trainings left, and make a picture of every validated case.

    Args:
        paths: With ``results``; ``raw`` has the images, ``preprocessed`` the references, where they are set.
        table: What they achieved.
        models: Those of the table, in its order.
        on_case: Told how many pictures of a model are done, of how many.

    Raises:
        CheckpointError: A summary or ``dataset.json`` is damaged.
        SetupError: Pillow is not installed.
    """
    files = _files(paths, table.dataset)
    looks = []
    for model, results in zip(models, table.models, strict=True):
        content = read_json(model.folder / "dataset.json") if (model.folder / "dataset.json").is_file() else None
        try:
            labels = labels_of_dataset(content or {}, source=str(model.folder / "dataset.json"))
        except InputError as error:
            raise CheckpointError(str(error)) from error
        done: list[Fold] = ["all" if one.fold == "full" else int(one.fold) for one in results.folds]
        cases = validated_cases(model, done, labels)
        size = 220 if len(cases) <= 60 else 160 if len(cases) <= 300 else 112
        pictured = with_pictures(cases, files, labels, size=size, on_case=on_case)
        names = foreground_names(content or {})
        courses = [
            FoldCourse(fold, read_training_curve(model.folder / f"fold_{'all' if fold == 'full' else fold}"), names)
            for fold in sorted({*(one.fold for one in results.folds), *results.unfinished}, key=_place_of)
        ]
        there = tuple(course for course in courses if course.curve is not None)
        looks.append(ModelLook(results, labels, there, tuple(pictured)))
    return looks


def results_page(dataset: str, looks: Sequence[ModelLook]) -> str:
    """Return the page.

    Raises:
        SetupError: Jinja is not installed.
    """
    return render(
        "results.html.j2",
        title=f"{dataset}: trainings",
        models=[
            {
                "name": look.results.model,
                "results": look.results,
                "folds": look.results.folds,
                "labels": list(look.results.folds[0].dice) if look.results.folds else [],
                "tolerances": list(map(length_in_words, look.results.tolerances_mm)),
                "columns": list(look.labels.values) if len(look.labels.values) <= _MOST_COLUMNS else [],
                "colours": {name: css(colour) for name, colour in colours_of(look.labels.values).items()},
                "courses": [_course(course) for course in look.courses],
                "cases": look.cases,
                "has_surfaces": any(case.scores for case in look.cases),
            }
            for look in looks
        ],
    )


def write_results_page(dataset: str, looks: Sequence[ModelLook], folder: Path) -> Path:
    """Write ``results.html`` into a folder, which exists, and return it.

    Raises:
        OutputError: It cannot be written.
        SetupError: Jinja is not installed.
    """
    write_text(folder / RESULTS_PAGE_NAME, results_page(dataset, looks))
    return folder / RESULTS_PAGE_NAME


def _files(paths: NnunetPaths, dataset: str) -> ValidationFiles:
    references = None if paths.preprocessed is None else paths.preprocessed / dataset / "gt_segmentations"
    if paths.raw is None or (declared := read_declared(paths.raw / dataset / FILE)[0]) is None:
        return ValidationFiles({}, references)
    try:
        cases = cases_in(paths.raw / dataset, declared).cases
    except InputError:
        return ValidationFiles({}, references)
    return ValidationFiles(
        {case.name: case.channels[0] for case in cases if case.channels and case.channels[0] is not None},
        references,
        (declared.channel_names or ("CT",))[0],
    )


def _place_of(fold: str) -> tuple[bool, int]:
    """Return where a fold stands among others: by its number, ``full`` last."""
    return (True, 0) if fold == "full" else (False, int(fold))


def _course(course: FoldCourse) -> "dict[str, str | list[Markup]]":
    """Return a fold's course in words and drawings."""
    curve = course.curve
    if curve is None:
        raise ValueError(f"fold {course.fold} has no curve")
    last = curve.epochs[-1]
    of = "" if curve.planned is None else f" of {curve.planned}"
    left = "" if not curve.left_s else f", left {duration(curve.left_s)}"
    dice = [value for value in last.pseudo_dice if not math.isnan(value)]
    lowest = ""
    if len(last.pseudo_dice) > 1 and dice:
        names = dict(zip(last.pseudo_dice, course.names, strict=False))
        lowest = f", lowest {number(min(dice))} {names.get(min(dice), '')}"
    return {
        "fold": course.fold,
        "words": f"epoch {last.epoch}{of}, {duration(last.took_s)} an epoch{left}; loss {number(last.loss)} "
        f"(validation {number(last.validation_loss)}); pseudo Dice {number(last.mean_dice)} "
        f"(moving {number(last.moving_dice)}{lowest}); learning rate {last.learning_rate:.2e}",
        "source": curve.source + (", which has four decimals" if curve.rounded else ""),
        "charts": [
            line_chart(
                [
                    _line("training loss", curve, lambda epoch: epoch.loss, _TRAINING),
                    _line("validation loss", curve, lambda epoch: epoch.validation_loss, _VALIDATION),
                ],
                x_name="epoch",
            ),
            line_chart(_dice_lines(curve, course.names), x_name="epoch", y_range=(0.0, 1.0)),
            line_chart([_line("learning rate", curve, lambda epoch: epoch.learning_rate, _TRAINING)], x_name="epoch"),
            line_chart(
                [_line("seconds an epoch", curve, lambda epoch: epoch.took_s, _TRAINING)],
                x_name="epoch",
                y_range=(0.0, 1.1 * max(epoch.took_s for epoch in curve.epochs) or 1.0),
            ),
        ],
    }


def _dice_lines(curve: TrainingCurve, names: Sequence[str]) -> list[Line]:
    lines = []
    count = len(curve.epochs[-1].pseudo_dice)
    if 1 < count <= _MOST_LINES:
        colours = colours_of({name: (place,) for place, name in enumerate(names)})
        for place, name in enumerate(names[:count]):
            lines.append(_line(name, curve, lambda epoch, place=place: epoch.pseudo_dice[place], css(colours[name])))
    return [
        *lines,
        _line("moving average", curve, lambda epoch: epoch.moving_dice, _MOVING, dashed=True),
        _line("pseudo Dice" if not lines else "mean", curve, lambda epoch: epoch.mean_dice, _MEAN),
    ]


def _line(name: str, curve: TrainingCurve, value: Callable[..., float], colour: str, *, dashed: bool = False) -> Line:
    """Return one value of all epochs; of many epochs, the mean of some for each point."""
    epochs = curve.epochs
    group = math.ceil(len(epochs) / _MOST_POINTS)
    points = []
    for first in range(0, len(epochs), group):
        there = [value(epoch) for epoch in epochs[first : first + group]]
        there = [one for one in there if math.isfinite(one)]
        mean = sum(there) / len(there) if there else math.nan
        points.append((float(epochs[min(first + group, len(epochs)) - 1].epoch), mean))
    return Line(name, points, colour, dashed=dashed)
