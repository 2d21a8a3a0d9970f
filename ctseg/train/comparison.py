"""Which configuration is best, by nnU-Net's own determination on the cross-validation."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import SetupError, TrainingError
from ctseg.files.atomic import write_text
from ctseg.nnunet.best_configuration import BestConfiguration, BestMember
from ctseg.nnunet.folds import CROSS_VALIDATION_FOLDS, Fold
from ctseg.nnunet.plans import resolve_configuration
from ctseg.nnunet.postprocessing import read_postprocessing
from ctseg.nnunet.results_folder import read_json
from ctseg.train.cross_validation import TrainedModel
from ctseg.train.paths import NnunetPaths
from ctseg.train.worker_pools import pools_that_end
from ctseg.train.worker_processes import default_workers


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    Attributes:
        models: The candidates.
        folds: The folds that all of them have.
        ensembles: Also consider each pair of models; needs the probabilities of the validations.
        processes: Worker processes; None takes as many as there are cores, at most 8.
        overwrite: Compute anew what an earlier call left.
    """

    models: Sequence[TrainedModel]
    folds: Sequence[Fold]
    ensembles: bool = True
    processes: int | None = None
    overwrite: bool = True

    @property
    def with_ensembles(self) -> bool:
        """Whether there are pairs to consider."""
        return self.ensembles and len(self.models) > 1

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return self.processes or default_workers()


@dataclass(frozen=True)
class Compared:
    """What came of it.

    Attributes:
        best: The best configuration.
        file: Where it is written.
        scores: Mean Dice of every model and ensemble, by name, the best first.
    """

    best: BestConfiguration
    file: Path
    scores: Mapping[str, float]


@pools_that_end()
def find_best(paths: NnunetPaths, dataset: str, comparison: Comparison, *, output: Path | None = None) -> Compared:
    """Let nnU-Net find the best configuration and post-processing, and write them as ``best.json``.

    Args:
        paths: With ``preprocessed`` and ``results``.
        dataset: ``DatasetXXX_Name``.
        comparison: What to compare.
        output: Where ``best.json`` goes; None puts it beside the models.

    Raises:
        TrainingError: A fold is missing, not validated, or has no probabilities; all are told at once.
        CheckpointError: nnU-Net's post-processing cannot be read.
        OutputError: The file cannot be written.
    """
    if paths.results is None or paths.preprocessed is None:
        raise SetupError("comparing models needs nnUNet_preprocessed and nnUNet_results")
    folds = _numbers_of_validated_folds(comparison)
    decided = _decided(dataset, comparison, folds)
    scores: dict[str, float] = decided["all_results"]
    chosen = decided["best_model_or_ensemble"]
    members = _members(chosen["selected_model_or_models"], scores, paths.results / dataset)
    best = BestConfiguration(
        dataset=dataset,
        members=tuple(members),
        folds=tuple(folds),
        postprocessing=read_postprocessing(Path(chosen["postprocessing_file"]).parent),
        dice=chosen["result_on_crossval_pre_pp"],
        dice_postprocessed=chosen["result_on_crossval_post_pp"],
    )
    file = output or paths.results / dataset / "best.json"
    write_text(file, best.model_dump_json(indent=2) + "\n")
    return Compared(best, file, dict(sorted(scores.items(), key=lambda item: -item[1])))


def _numbers_of_validated_folds(comparison: Comparison) -> list[int]:
    """Return the folds, once every model has them."""
    numbers = [fold for fold in comparison.folds if fold != "all"]
    known = {*CROSS_VALIDATION_FOLDS, *(fold for model in comparison.models for fold in model.validated_folds())}
    if foreign := [fold for fold in numbers if fold not in known]:
        there = "; ".join(
            f"of {model.name} {_listed(model.validated_folds()) or 'none'}" for model in comparison.models
        )
        raise SetupError(
            f"no model has a fold {_listed(foreign)}, and nnU-Net's are 0 to 4: trained and validated are {there}",
            settings=("folds",),
        )
    if len(numbers) != len(comparison.folds):
        raise SetupError("a training on every case (full) has no cases left to be compared on: name folds 0 to 4")
    problems, settings = [], []
    for model in comparison.models:
        if missing := [fold for fold in numbers if not model.is_validated(fold)]:
            done = model.validated_folds()
            which = f"fold {missing[0]} is" if len(missing) == 1 else f"folds {_listed(missing)} are"
            there = _listed(done) or "none"
            problems.append(
                f"{model.name}: {which} not trained and validated (done: {there}): train "
                f"{'it' if len(missing) == 1 else 'them'}, leave the model out, or compare other folds"
            )
            settings += ["trainers", "plans", "configurations", "folds"]
        elif comparison.with_ensembles and (
            bare := [fold for fold in numbers if not any(model.validation(fold).glob("*.npz"))]
        ):
            problems.append(
                f"{model.name}: folds {_listed(bare)} have no probabilities, which ensembles need: let `ctseg train` "
                "validate them again and keep the probabilities, or compare single models only"
            )
            settings.append("disable_ensembling")
    if problems:
        raise TrainingError(
            "\n".join(["nothing was compared:", *(f"  {problem}" for problem in problems)]),
            settings=tuple(dict.fromkeys(settings)),
        )
    return numbers


def _decided(dataset: str, comparison: Comparison, folds: list[int]) -> dict[str, Any]:
    """Return what nnU-Net decides."""
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    candidates = [
        {"plans": model.plans, "configuration": model.configuration, "trainer": model.trainer}
        for model in comparison.models
    ]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            decided: dict[str, Any] = find_best_configuration(
                dataset,
                candidates,
                allow_ensembling=comparison.with_ensembles,
                num_processes=comparison.workers,
                overwrite=comparison.overwrite,
                folds=folds,
            )
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"{dataset}: nnU-Net could not compare the models: {error}\n{said.getvalue()}") from error
    return decided


def _members(chosen: Sequence[Mapping[str, str]], scores: Mapping[str, float], results: Path) -> list[BestMember]:
    """Return the models of the best configuration, in nnU-Net's order."""
    members = []
    for one in chosen:
        member = BestMember(trainer=one["trainer"], plans=one["plans_identifier"], configuration=one["configuration"])
        plans = read_json(results / member.folder_name / "plans.json")
        previous = resolve_configuration(plans, member.configuration).get("previous_stage")
        members.append(member.model_copy(update={"dice": scores[member.folder_name], "previous_stage": previous or ""}))
    return members


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
