"""What the trained folds of a data set achieved."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctseg.errors import CheckpointError, CtsegError, InputError, SetupError
from ctseg.evaluate.compared_labels import labels_of_dataset
from ctseg.evaluate.evaluation import Evaluation, length_in_words
from ctseg.evaluate.surfaces import DEFINITION
from ctseg.files.identity import printable
from ctseg.nnunet.folds import Fold
from ctseg.nnunet.training_curve import read_training_curve
from ctseg.train.fold_evaluation import SurfaceResult, evaluated_validation, surface_results
from ctseg.train.names import meant
from ctseg.train.paths import NnunetPaths

_VALIDATE_AGAIN = "let `ctseg train` validate the fold again"


@dataclass(frozen=True)
class TrainedModel:
    """A trainer, plans and configuration with at least one fold in ``nnUNet_results``."""

    trainer: str
    plans: str
    configuration: str
    folder: Path

    @property
    def name(self) -> str:
        """The folder's name, ``trainer__plans__configuration``."""
        return self.folder.name

    def validation(self, fold: Fold) -> Path:
        """Return the folder in which the validation of a fold lies."""
        return self.folder / f"fold_{fold}" / "validation"

    def validated_folds(self) -> list[int]:
        """Return the folds whose validation came to its end, but the one of every case."""
        names = [folder.name[5:] for folder in self.folder.glob("fold_*")]
        return sorted(int(name) for name in names if name.isdecimal() and self.is_validated(int(name)))

    def is_validated(self, fold: Fold) -> bool:
        """Whether the validation of a fold came to its end."""
        return (self.validation(fold) / "summary.json").is_file()


def trained_models(
    paths: NnunetPaths,
    dataset: str,
    *,
    trainers: Sequence[str] | None = None,
    plans: Sequence[str] | None = None,
    configurations: Sequence[str] | None = None,
) -> list[TrainedModel]:
    """Return the trained models of a data set, by name.

    Args:
        paths: With ``results``.
        dataset: ``DatasetXXX_Name``.
        trainers: Only these; None takes all, as with ``plans`` and ``configurations``.
        plans: Only these.
        configurations: Only these.

    Raises:
        SetupError: Nothing was trained, or nothing of what is asked for.
    """
    if paths.results is None:
        raise SetupError("nnUNet_results is not set")
    root = paths.results / dataset
    found = []
    for folder in sorted(root.glob("*__*__*")):
        parts = folder.name.split("__")
        if len(parts) == 3 and any(folder.glob("fold_*")):
            found.append(TrainedModel(parts[0], parts[1], parts[2], folder))
    asked = [
        model
        for model in found
        if (trainers is None or model.trainer in trainers)
        and (plans is None or model.plans in plans)
        and (configurations is None or model.configuration in configurations)
    ]
    for what, setting, words, has in (
        ("trainer", "trainers", trainers, {model.trainer for model in asked}),
        ("plans", "plans", plans, {model.plans for model in asked}),
        ("configuration", "configurations", configurations, {model.configuration for model in asked}),
    ):
        trained = {str(getattr(model, what)) for model in found}
        if missing := sorted(set(words or ()) - has):
            raise SetupError(
                f"{dataset}: nothing trained for {what} {' '.join(missing)}; "
                f"trained are: {', '.join(model.name for model in found) or 'none'}{meant(missing[0], trained)}",
                settings=(setting,),
            )
    if not asked:
        raise SetupError(f"{dataset}: nothing trained in {root}: `ctseg train {dataset[7:10]} …` first")
    return asked


@dataclass(frozen=True)
class FoldResult:
    """Dice of one fold's validation.

    Attributes:
        fold: ``0`` …, or ``full``, whose cases were all trained on.
        cases: Number of cases.
        dice: By label or region; NaN where no case has the label.
        mean_dice: Mean over the foreground, as nnU-Net has it.
    """

    fold: str
    cases: int
    dice: Mapping[str, float]
    mean_dice: float


@dataclass(frozen=True)
class UnfinishedFold:
    """How far a fold is that is not validated.

    Attributes:
        fold: ``0`` …, or ``full``.
        epoch: The last one that is done; None where none is told of.
        planned: How many there will be; None where nothing says so.
    """

    fold: str
    epoch: int | None
    planned: int | None

    def __str__(self) -> str:
        if self.epoch is None:
            return f"fold {self.fold}: no epoch is done"
        if self.epoch == self.planned:
            return f"fold {self.fold}: all {self.planned} epochs are done, the validation is not"
        return f"fold {self.fold}: epoch {self.epoch}" + ("" if self.planned is None else f" of {self.planned}")


@dataclass(frozen=True)
class ModelResults:
    """The cross-validation of one model.

    Attributes:
        model: ``trainer__plans__configuration``.
        folds: Those that are validated.
        unfinished: Those that are not.
        surfaces: Over the cases of all folds but ``full``; empty where nothing was compared.
        tolerances_mm: Of the surface Dice.
        surface_definition: Of the distances; empty where there are none.
        without_surfaces: Why folds have no part in them.
        progress: How far each of the unfinished folds is.
    """

    model: str
    folds: tuple[FoldResult, ...]
    unfinished: tuple[str, ...]
    surfaces: tuple[SurfaceResult, ...] = ()
    tolerances_mm: tuple[float, ...] = ()
    surface_definition: str = ""
    without_surfaces: tuple[str, ...] = ()
    progress: tuple[UnfinishedFold, ...] = ()

    def mean(self, label: str | None = None) -> float:
        """Return the mean over folds of a label's Dice, or of the mean Dice; NaN counts for nothing."""
        values = [
            result.mean_dice if label is None else result.dice[label] for result in self.folds if result.fold != "full"
        ]
        values = [value for value in values if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class ResultsTable:
    """The cross-validations of a data set's models."""

    dataset: str
    models: tuple[ModelResults, ...]

    def to_json(self) -> str:
        """Return the table for programs; NaN becomes null, infinity a word."""
        return json.dumps(_without_nan(asdict(self)), indent=2)

    def __str__(self) -> str:
        blocks = [f"{self.dataset}: Dice of the cross-validation"]
        blocks += ["\n".join([model.model, *(f"  {line}" for line in _lines(model))]) for model in self.models]
        return "\n\n".join(blocks)


def _lines(model: ModelResults) -> list[str]:
    lines = _table(model) if model.folds else ["no fold is validated yet"]
    if any(result.fold == "full" for result in model.folds):
        lines.append("(full: trained on the very cases it is measured on; not part of the mean)")
    if model.progress:
        lines.append(f"(not validated yet: {'; '.join(map(str, model.progress))})")
    if model.surfaces:
        lines += ["surfaces, over the cases of all folds", *_surface_table(model)]
    lines += [f"(no surfaces of {why})" for why in model.without_surfaces]
    return lines


def _surface_table(model: ModelResults) -> list[str]:
    shares = [f"NSD {length_in_words(tolerance)} mm, mean" for tolerance in model.tolerances_mm]
    rows = [["label", "HD95 mm, median", "ASSD mm, median", *shares, "cases"]]
    rows += [
        [one.label, _mm(one.hd95_mm), _mm(one.assd_mm), *map(_dice, one.nsd), str(one.cases)] for one in model.surfaces
    ]
    return _aligned(rows)


def _table(model: ModelResults) -> list[str]:
    return _aligned(_dice_rows(model))


def _dice_rows(model: ModelResults) -> list[list[str]]:
    return [
        ["label", *(f"fold {result.fold}" for result in model.folds), "mean"],
        *(
            [label, *(_dice(result.dice[label]) for result in model.folds), _dice(model.mean(label))]
            for label in model.folds[0].dice
        ),
        ["mean", *(_dice(result.mean_dice) for result in model.folds), _dice(model.mean())],
        ["cases", *(str(result.cases) for result in model.folds), ""],
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [[printable(word) for word in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(word.rjust(n) for word, n in zip(row, widths, strict=True)) for row in rows]


def results_table(
    dataset: str, models: Sequence[TrainedModel], folds: Sequence[Fold] | None, surfaces: NnunetPaths | None = None
) -> ResultsTable:
    """Read the validations of trained models.

    Args:
        dataset: ``DatasetXXX_Name``.
        models: The models.
        folds: Which folds; None takes those that are there.
        surfaces: Where the label maps of the data set lie, with which those of the validation are compared, once; None
            compares none.

    Raises:
        CheckpointError: A summary is damaged.
        SetupError: None of the folds that were asked for is validated.
    """
    tables = []
    for model in models:
        there: list[Fold] = sorted(
            (int(f.name[5:]) for f in model.folder.glob("fold_*") if f.name[5:].isdecimal()),
        )
        if (model.folder / "fold_all").is_dir():
            there.append("all")
        wanted = list(folds) if folds is not None else there
        names = _label_names(model.folder / "dataset.json")
        done = tuple(_fold_result(model, fold, names) for fold in wanted if model.is_validated(fold))
        progress = tuple(_progress(model, fold) for fold in wanted if not model.is_validated(fold))
        result = ModelResults(model.name, done, tuple(fold.fold for fold in progress), progress=progress)
        if surfaces is not None:
            result = _with_surfaces(result, model, [fold for fold in wanted if model.is_validated(fold)], surfaces)
        tables.append(result)
    if folds is not None and not any(table.folds for table in tables):
        raise _nothing_validated(dataset, models, tables)
    return ResultsTable(dataset, tuple(tables))


def _progress(model: TrainedModel, fold: Fold) -> UnfinishedFold:
    curve = read_training_curve(model.folder / f"fold_{fold}")
    if curve is None:
        return UnfinishedFold(_fold_name(fold), None, None)
    return UnfinishedFold(_fold_name(fold), curve.epochs[-1].epoch, curve.planned)


def _nothing_validated(dataset: str, models: Sequence[TrainedModel], tables: Sequence[ModelResults]) -> SetupError:
    """Return the error that says how far the folds are that were asked for, and what to do."""
    far = "; ".join(f"{table.model}: {', '.join(map(str, table.progress))}" for table in tables)
    fold = tables[0].unfinished[0]
    begun = any(one.epoch is not None for one in tables[0].progress[:1])
    command = f"`ctseg train {dataset[7:10]} {models[0].configuration} {fold}`"
    return SetupError(
        f"{dataset}: none of the folds that were asked for is validated ({far}): "
        + (f"let {command} go on, which validates it in the end" if begun else f"{command} trains and validates it"),
        settings=("folds",),
    )


def _with_surfaces(
    result: ModelResults, model: TrainedModel, folds: Sequence[Fold], paths: NnunetPaths
) -> ModelResults:
    evaluations: list[Evaluation] = []
    without: dict[str, list[str]] = {}
    for fold in folds:
        if fold == "all":  # its cases were all trained on
            continue
        try:
            found = evaluated_validation(model.validation(fold), model.folder, paths, model.folder.parent.name)
        except CtsegError as error:
            without.setdefault(str(error), []).append(_fold_name(fold))
            continue
        evaluations.append(found)
        for refused in found.refused:
            without.setdefault(refused.error, []).append(_fold_name(fold))
    return replace(
        result,
        surfaces=surface_results(evaluations),
        tolerances_mm=evaluations[0].tolerances_mm if evaluations else (),
        surface_definition=DEFINITION if evaluations else "",
        without_surfaces=tuple(
            f"{'fold' if len(names) == 1 else 'folds'} {', '.join(names)}: {why}" for why, names in without.items()
        ),
    )


def _fold_result(model: TrainedModel, fold: Fold, names: Mapping[str, str]) -> FoldResult:
    file = model.validation(fold) / "summary.json"
    content = read_summary(file)
    try:
        return FoldResult(
            fold=_fold_name(fold),
            cases=len(content["metric_per_case"]),
            dice={names.get(key, key): float(value["Dice"]) for key, value in content["mean"].items()},
            mean_dice=float(content["foreground_mean"]["Dice"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {type(error).__name__}: {error}: {_VALIDATE_AGAIN}") from error


def read_summary(file: Path) -> dict[str, Any]:
    """Read what nnU-Net's validation says of its cases.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}: {_VALIDATE_AGAIN}") from error
    return content


def _label_names(file: Path) -> dict[str, str]:
    """Names of labels and regions by the key that nnU-Net's summaries have."""
    if not file.is_file():
        return {}
    try:
        keys = labels_of_dataset(json.loads(file.read_text()), source=str(file)).keys
    except (InputError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return {key: name for name, key in keys.items()}


def _fold_name(fold: Fold) -> str:
    return "full" if fold == "all" else str(fold)


def _dice(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _mm(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and math.isinf(value):
        return "Infinity"  # as evaluation.json has it: JSON has no such number
    return None if isinstance(value, float) and math.isnan(value) else value
