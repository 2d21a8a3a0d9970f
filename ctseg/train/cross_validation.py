"""What the trained folds achieved, and which configuration is best by nnU-Net's own determination."""

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import CheckpointError, OutputError, SetupError, TrainingError
from ctseg.nnunet.best_configuration import BestConfiguration, BestMember
from ctseg.nnunet.folds import CROSS_VALIDATION_FOLDS, Fold
from ctseg.nnunet.postprocessing import read_postprocessing
from ctseg.train.paths import NnunetPaths


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
    for what, words, has in (
        ("-tr", trainers, {model.trainer for model in asked}),
        ("-p", plans, {model.plans for model in asked}),
        ("-c", configurations, {model.configuration for model in asked}),
    ):
        if missing := sorted(set(words or ()) - has):
            raise SetupError(
                f"{dataset}: nothing trained for {what} {' '.join(missing)}; "
                f"trained are: {', '.join(model.name for model in found) or 'none'}"
            )
    if not asked:
        raise SetupError(f"{dataset}: nothing trained in {root}: `ctseg train {dataset[7:10]} …` first")
    return asked


def find_best(
    paths: NnunetPaths,
    dataset: str,
    models: Sequence[TrainedModel],
    folds: Sequence[Fold],
    *,
    ensembles: bool = True,
    processes: int | None = None,
    overwrite: bool = True,
    output: Path | None = None,
) -> tuple[BestConfiguration, Path]:
    """Let nnU-Net find the best configuration and post-processing, and write them as ``best.json``.

    Args:
        paths: With ``preprocessed`` and ``results``.
        dataset: ``DatasetXXX_Name``.
        models: The candidates.
        folds: The folds that all of them have.
        ensembles: Also consider each pair of models; needs the probabilities of the validations.
        processes: Worker processes; None takes as many as there are cores, at most 8.
        overwrite: Compute anew what an earlier call left.
        output: Where ``best.json`` goes; None puts it beside the models.

    Returns:
        The decision, and the file it was written to.

    Raises:
        TrainingError: A fold is missing, not validated, or has no probabilities; all are told at once.
        CheckpointError: nnU-Net's post-processing cannot be read.
        OutputError: The file cannot be written.
    """
    if paths.results is None:
        raise SetupError("nnUNet_results is not set")
    numbers = _require_folds(models, folds, ensembles=ensembles and len(models) > 1)
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    workers = processes or min(8, os.cpu_count() or 1)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            decided = find_best_configuration(
                dataset,
                [{"plans": m.plans, "configuration": m.configuration, "trainer": m.trainer} for m in models],
                allow_ensembling=ensembles and len(models) > 1,
                num_processes=workers,
                overwrite=overwrite,
                folds=numbers,
            )
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"{dataset}: nnU-Net could not compare the models: {error}\n{said.getvalue()}") from error
    scores: dict[str, float] = decided["all_results"]
    for name, score in sorted(scores.items(), key=lambda item: -item[1]):
        print(f"  Dice {score:.4f}  {name}")
    chosen = decided["best_model_or_ensemble"]
    members = sorted(
        (
            BestMember(
                trainer=one["trainer"],
                plans=one["plans_identifier"],
                configuration=one["configuration"],
                dice=scores[f"{one['trainer']}__{one['plans_identifier']}__{one['configuration']}"],
            )
            for one in chosen["selected_model_or_models"]
        ),
        key=lambda member: -(member.dice or 0.0),
    )
    merged = paths.results / dataset / members[0].folder_name / f"crossval_results_folds_{'_'.join(map(str, numbers))}"
    if len(members) > 1:
        # nnU-Net determined the post-processing of the ensemble; its best member has its own
        with contextlib.redirect_stdout(said):
            _determine_postprocessing(paths, dataset, merged, workers)
    best = BestConfiguration(
        dataset=dataset,
        members=tuple(members),
        folds=tuple(numbers),
        postprocessing=read_postprocessing(merged),
        dice=chosen["result_on_crossval_pre_pp"],
        dice_postprocessed=_summary(merged / "postprocessed" / "summary.json")["foreground_mean"]["Dice"],
    )
    file = output or paths.results / dataset / "best.json"
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(best.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from error
    return best, file


def _require_folds(models: Sequence[TrainedModel], folds: Sequence[Fold], *, ensembles: bool) -> list[int]:
    numbers = [fold for fold in folds if fold != "all"]
    if len(numbers) != len(folds):
        raise SetupError("a training on every case (full) has no cases left to be compared on: name folds 0 to 4")
    problems = []
    for model in models:
        if missing := [fold for fold in numbers if not model.is_validated(fold)]:
            done = [fold for fold in CROSS_VALIDATION_FOLDS if model.is_validated(fold)]
            problems.append(
                f"{model.name}: folds {_list(missing)} are not trained and validated (done: {_list(done) or 'none'}): "
                f"train them, leave the model out by -tr, -p or -c, or compare fewer folds by -f"
            )
        elif ensembles and (bare := [fold for fold in numbers if not any(model.validation(fold).glob("*.npz"))]):
            problems.append(
                f"{model.name}: folds {_list(bare)} have no probabilities, which ensembles need: "
                "`ctseg train … --val --npz` adds them, or give --disable_ensembling"
            )
    if problems:
        raise TrainingError("\n".join(["nothing was compared:", *(f"  {problem}" for problem in problems)]))
    return numbers


def _determine_postprocessing(paths: NnunetPaths, dataset: str, merged: Path, workers: int) -> None:
    if paths.preprocessed is None:
        raise SetupError("nnUNet_preprocessed is not set")
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    determine_postprocessing(
        str(merged),
        str(paths.preprocessed / dataset / "gt_segmentations"),
        plans_file_or_dict=str(merged / "plans.json"),
        dataset_json_file_or_dict=str(merged / "dataset.json"),
        num_processes=workers,
        keep_postprocessed_files=True,
    )


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
class ModelResults:
    """The cross-validation of one model."""

    model: str
    folds: tuple[FoldResult, ...]
    unfinished: tuple[str, ...]

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
        """Return the table for programs; NaN becomes null."""
        return json.dumps(_without_nan(asdict(self)), indent=2)

    def __str__(self) -> str:
        blocks = [f"{self.dataset}: Dice of the cross-validation"]
        for model in self.models:
            head = ["label", *(f"fold {result.fold}" for result in model.folds), "mean"]
            rows = [
                [label, *(_dice(result.dice[label]) for result in model.folds), _dice(model.mean(label))]
                for label in (model.folds[0].dice if model.folds else ())
            ]
            rows.append(["mean", *(_dice(result.mean_dice) for result in model.folds), _dice(model.mean())])
            rows.append(["cases", *(str(result.cases) for result in model.folds), ""])
            widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
            lines = ["  ".join(word.rjust(n) for word, n in zip(row, widths, strict=True)) for row in (head, *rows)]
            if not model.folds:
                lines = ["no fold is validated yet"]
            if any(result.fold == "full" for result in model.folds):
                lines.append("(full: trained on the very cases it is measured on; not part of the mean)")
            if model.unfinished:
                lines.append(f"(not validated yet: folds {', '.join(model.unfinished)})")
            blocks.append("\n".join([model.model, *(f"  {line}" for line in lines)]))
        return "\n\n".join(blocks)


def results_table(dataset: str, models: Sequence[TrainedModel], folds: Sequence[Fold] | None) -> ResultsTable:
    """Read the validations of trained models.

    Args:
        dataset: ``DatasetXXX_Name``.
        models: The models.
        folds: Which folds; None takes those that are there.

    Raises:
        CheckpointError: A summary is damaged.
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
        tables.append(
            ModelResults(model.name, done, tuple(_fold_name(fold) for fold in wanted if not model.is_validated(fold)))
        )
    return ResultsTable(dataset, tuple(tables))


def _fold_result(model: TrainedModel, fold: Fold, names: Mapping[str, str]) -> FoldResult:
    file = model.validation(fold) / "summary.json"
    content = _summary(file)
    try:
        return FoldResult(
            fold=_fold_name(fold),
            cases=len(content["metric_per_case"]),
            dice={names.get(key, key): float(value["Dice"]) for key, value in content["mean"].items()},
            mean_dice=float(content["foreground_mean"]["Dice"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {type(error).__name__}: {error}: run `ctseg train … --val` again") from error


def _summary(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}: run `ctseg train … --val` again") from error
    return content


def _label_names(file: Path) -> dict[str, str]:
    """Names of labels and regions by the key that nnU-Net's summaries have."""
    if not file.is_file():
        return {}
    labels = json.loads(file.read_text())["labels"]
    return {
        str(tuple(value) if isinstance(value, list) and len(value) > 1 else value): name
        for name, value in labels.items()
    }


def _fold_name(fold: Fold) -> str:
    return "full" if fold == "all" else str(fold)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _dice(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
