"""What the validation of a fold scores beside nnU-Net's Dice: kept beside its label maps until they change."""

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import CtsegError, InputError, OutputError
from ctseg.evaluate.compared_labels import DATASET_NAME, labels_named_in
from ctseg.evaluate.evaluation import EVALUATION_NAME, Evaluation, LabelScores, read_evaluation
from ctseg.evaluate.folder import evaluate_folder, pair_files
from ctseg.evaluate.summary import nan_mean
from ctseg.files.atomic import write_text
from ctseg.files.formats import stem_of
from ctseg.files.listing import list_folder
from ctseg.train.paths import NnunetPaths

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SurfaceResult:
    """How far a label's surfaces lie from those of the data set, over all cases that were validated.

    Attributes:
        label: Its name.
        cases: How many define it.
        hd95_mm: Median over the cases; infinite cases count.
        assd_mm: Likewise.
        nsd: Mean over the cases, for each tolerance.
    """

    label: str
    cases: int
    hd95_mm: float
    assd_mm: float
    nsd: tuple[float, ...]


def evaluated_validation(validation: Path, model: Path, paths: NnunetPaths, dataset: str) -> Evaluation:
    """Return what the label maps of a fold's validation score, from the last time where no file was changed since.

    Args:
        validation: The folder of a fold's label maps; ``evaluation.json`` is kept there.
        model: The folder of the trained model, whose ``dataset.json`` names the labels.
        paths: Where the data set's own label maps lie: nnU-Net's ``gt_segmentations``, else ``labelsTr``.
        dataset: ``DatasetXXX_Name``.

    Returns:
        The evaluation. Where the data set's label maps are gone, the last one that was made with them, if it is about
        the label maps that are there.

    Raises:
        InputError: There are no label maps of the fold or of the data set, and no such evaluation.
    """
    file = validation / EVALUATION_NAME
    earlier = _earlier(file)
    maps = {stem_of(path): path for path in list_folder(validation).scans}
    try:
        evaluation = _evaluated(validation, set(maps), _references(paths, dataset), model / DATASET_NAME, earlier)
    except InputError:
        if earlier is None or any(path.stat().st_mtime_ns > file.stat().st_mtime_ns for path in maps.values()):
            raise
        return earlier
    if evaluation is not earlier:
        try:
            write_text(file, evaluation.to_json() + "\n")
        except OutputError as error:
            logger.debug("not kept for the next time: %s", error)
    return evaluation


def surface_results(evaluations: Sequence[Evaluation]) -> tuple[SurfaceResult, ...]:
    """Return what labels score over the cases of several folds; the labels and tolerances are those of the first."""
    results = []
    for name in evaluations[0].labels if evaluations else ():
        scores = [case.labels[name] for one in evaluations for case in one.cases if name in case.labels]
        there = [score for score in scores if not math.isnan(score.hd95_mm)]
        results.append(_surface_result(name, there, len(evaluations[0].tolerances_mm)))
    return tuple(results)


def _surface_result(name: str, there: Sequence[LabelScores], tolerances: int) -> SurfaceResult:
    return SurfaceResult(
        label=name,
        cases=len(there),
        hd95_mm=statistics.median(score.hd95_mm for score in there) if there else math.nan,
        assd_mm=statistics.median(score.assd_mm for score in there) if there else math.nan,
        nsd=tuple(nan_mean([score.nsd[place] for score in there]) for place in range(tolerances)),
    )


def _earlier(file: Path) -> Evaluation | None:
    try:
        return read_evaluation(file)
    except CtsegError:  # none, or of another version: it is made anew
        return None


def _references(paths: NnunetPaths, dataset: str) -> Path:
    folders = [] if paths.preprocessed is None else [paths.preprocessed / dataset / "gt_segmentations"]
    folders += [] if paths.raw is None else [paths.raw / dataset / "labelsTr"]
    for folder in folders:
        if folder.is_dir():
            return folder
    where = " and ".join(map(str, folders)) or "nnUNet_preprocessed and nnUNet_raw, which are not set"
    raise InputError(f"{dataset}: the label maps of the data set are gone (looked for in {where})")


def _evaluated(
    validation: Path, cases: set[str], references: Path, dataset_file: Path, earlier: Evaluation | None
) -> Evaluation:
    if not cases:
        raise InputError("the label maps of the validation are gone")
    files = pair_files(validation, references, cases)
    if files.surplus:
        raise InputError(f"{references}: no label map of {', '.join(files.surplus[:5])}, which {validation} has")

    def told(case: str) -> None:
        logger.info("%s: surfaces of %s compared", validation.parent.name, case)

    return evaluate_folder(
        validation, references, labels_named_in(dataset_file), cases=cases, earlier=earlier, case_done=told
    )
