"""The cases of validations, worst first, with a picture of where prediction and reference differ most."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import CheckpointError, CtsegError, InputError
from ctseg.evaluate.compared_labels import ComparedLabels
from ctseg.evaluate.evaluation import EVALUATION_NAME, LabelScores, read_evaluation
from ctseg.evaluate.pages.colours import RGB, colours_of, colours_of_values
from ctseg.evaluate.pages.pictures import SOFT_TISSUE_HU, largest_section, radiological_turn, thumbnail
from ctseg.files.formats import ChannelFiles, read_channel, stem_of
from ctseg.files.grid import ChannelVolume
from ctseg.files.volume import SAME_GRID_TOLERANCE_MM
from ctseg.nnunet.folds import Fold
from ctseg.train.case_overview import is_ct
from ctseg.train.cross_validation import TrainedModel, read_summary
from ctseg.train.intensities import spread_of
from ctseg.train.memory_room import MemoryRoom, bytes_of
from ctseg.train.scans import READER

_MOST_WORKERS = 8
_LINE: RGB = (255, 236, 80)
"""Of a reference of one label: seen on the veil of the prediction, too."""


@dataclass(frozen=True)
class ValidationFiles:
    """Where the files of a data set lie that pictures are made of; what is gone is missing here.

    Attributes:
        images: First channel of a case by its name.
        references: Folder of label maps; None where it is gone.
        channel_name: Of that channel.
    """

    images: Mapping[str, ChannelFiles]
    references: Path | None
    channel_name: str = "CT"


@dataclass(frozen=True)
class ValidatedCase:
    """One case of a validation.

    Attributes:
        fold: ``0`` …, or ``all``.
        case: Its name.
        dice: By label or region, nnU-Net's; NaN where neither prediction nor reference has it.
        scores: Distances between surfaces and volumes by label, where an evaluation lies in the validation's folder.
        prediction: Its label map.
        picture: Axial plane through the largest disagreement, or section where there is none; None where it is missing.
        missing: Why there is no picture.
    """

    fold: str
    case: str
    dice: Mapping[str, float]
    scores: Mapping[str, LabelScores]
    prediction: Path
    picture: str | None = None
    missing: str | None = None

    @property
    def mean_dice(self) -> float:
        """Mean over the labels that are there; NaN where none is."""
        there = [value for value in self.dice.values() if not math.isnan(value)]
        return sum(there) / len(there) if there else math.nan

    @property
    def lowest(self) -> tuple[str, float] | None:
        """The label with the lowest Dice."""
        there = {name: value for name, value in self.dice.items() if not math.isnan(value)}
        return min(there.items(), key=lambda item: item[1]) if there else None


def validated_cases(model: TrainedModel, folds: Sequence[Fold], labels: ComparedLabels) -> list[ValidatedCase]:
    """Return the cases of validated folds, the worst mean Dice first, without pictures.

    Args:
        model: A trained model.
        folds: Those that are validated.
        labels: Of the data set.

    Raises:
        CheckpointError: A summary is damaged.
    """
    names = {key: name for name, key in labels.keys.items()}
    cases = []
    for fold in folds:
        folder = model.validation(fold)
        scores = _scores(folder)
        try:
            for one in read_summary(folder / "summary.json")["metric_per_case"]:
                # as the machine wrote it on which the fold was validated
                file = re.split(r"[\\/]", one["prediction_file"])[-1]
                case = stem_of(Path(file))
                dice = {names.get(key, key): float(metrics["Dice"]) for key, metrics in one["metrics"].items()}
                cases.append(ValidatedCase(str(fold), case, dice, scores.get(case, {}), folder / file))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / 'summary.json'}: {type(error).__name__}: {error}: validate again"
            ) from error
    return sorted(cases, key=lambda one: (math.isnan(one.mean_dice), one.mean_dice, one.case))


def with_pictures(
    cases: Sequence[ValidatedCase],
    files: ValidationFiles,
    labels: ComparedLabels,
    *,
    size: int,
    workers: int | None = None,
    on_case: Callable[[int, int], object] | None = None,
) -> list[ValidatedCase]:
    """Return the same cases with pictures; where files are gone or cannot be read, with the reason.

    Args:
        cases: In any order, which stays.
        files: Where images and references lie.
        labels: Of the data set.
        size: Pixels of the longer side.
        workers: Cases at once; None: one for each usable core, up to eight, as memory allows.
        on_case: Told how many are done, of how many.

    Raises:
        SetupError: Pillow is not installed.
    """
    colours = colours_of_values(labels.values, colours_of(labels.values))
    room = MemoryRoom()

    def looked_at(case: ValidatedCase) -> ValidatedCase:
        try:
            image, prediction, reference = _files_of(case, files)
            with room.taken(bytes_of([image], prediction, reference)):
                volumes = [read_channel(one, READER) for one in (image, prediction, reference)]
                picture = disagreement_picture(
                    volumes[0], volumes[1], volumes[2], colours,
                    ignore_label=labels.ignore_label, is_ct=is_ct(files.channel_name), size=size,
                )  # fmt: skip
            return replace(case, picture=picture)
        except (InputError, OSError, MemoryError) as error:
            return replace(case, missing=str(error) or "not enough memory")

    done = []
    with ThreadPoolExecutor(workers or min(_MOST_WORKERS, usable_cpus())) as pool:
        for case in pool.map(looked_at, cases):
            done.append(case)
            if on_case is not None:
                on_case(len(done), len(cases))
    return done


def disagreement_picture(
    image: ChannelVolume,
    prediction: ChannelVolume,
    reference: ChannelVolume,
    colours: Mapping[int, RGB],
    *,
    ignore_label: int | None = None,
    is_ct: bool = True,
    size: int = 200,
) -> str:
    """Return the axial plane in which most voxels differ: the prediction as a veil, the reference as outlines.

    Where none differs, the plane is that of the largest section. Voxels that the reference ignores do not count.

    Args:
        image: What was segmented.
        prediction: Its labels.
        reference: What they should be.
        colours: By value.
        ignore_label: Of the reference.
        is_ct: Whether the image holds HU.
        size: Pixels of the longer side.

    Raises:
        InputError: They do not lie on one grid.
    """
    for what, other in (("the prediction", prediction), ("the reference", reference)):
        same = other.geometry.shape == image.geometry.shape
        if not same or other.geometry.distance_mm(image.geometry) > SAME_GRID_TOLERANCE_MM:
            raise InputError(f"{what} lies on another grid than the image: was the image changed since?")
    turn = radiological_turn(image.geometry)
    voxels, predicted, expected = (turn.apply(one.voxels) for one in (image, prediction, reference))
    z = plane_of_disagreement(predicted, expected, ignore_label)
    plane = np.nan_to_num(voxels[z]) if voxels.dtype.kind == "f" else voxels[z]
    window = SOFT_TISSUE_HU
    if not is_ct and (spread := spread_of(plane[None])) is not None:
        low, high = spread.at(0.005), spread.at(0.995)
        window = (low, high if high > low else low + 1)
    _, *spacing_mm = turn.apply_to_spacing(image.geometry.spacing_mm)
    return thumbnail(
        plane,
        predicted[z],
        colours,
        spacing_mm=(spacing_mm[0], spacing_mm[1]),
        window_hu=window,
        outline=expected[z],
        outline_colour=_LINE if len(colours) == 1 else None,
        size=size,
    )


def plane_of_disagreement(predicted: NDArray[Any], expected: NDArray[Any], ignore_label: int | None = None) -> int:
    """Return the first of the planes along the first axis in which most voxels differ, or else of the largest section.

    Args:
        predicted: (z, y, x), labels.
        expected: Likewise.
        ignore_label: In ``expected``: such voxels do not count.
    """
    differing = np.zeros(len(predicted), np.int64)
    for z, (one, other) in enumerate(zip(predicted, expected, strict=True)):
        wrong = one != other
        if ignore_label is not None:
            wrong &= other != ignore_label
        differing[z] = np.count_nonzero(wrong)
    return int(differing.argmax()) if differing.any() else largest_section(expected)[0]


def _files_of(case: ValidatedCase, files: ValidationFiles) -> tuple[ChannelFiles, ChannelFiles, ChannelFiles]:
    image = files.images.get(case.case)
    if image is None:
        raise InputError("its image is gone, or nnUNet_raw is not set")
    if not case.prediction.is_file():
        raise InputError(f"{case.prediction.name} is gone from the validation's folder")
    reference = None if files.references is None else files.references / case.prediction.name
    if reference is None or not reference.is_file():
        raise InputError("its reference is gone, or nnUNet_preprocessed is not set")
    return image, ChannelFiles((case.prediction,)), ChannelFiles((reference,))


def _scores(folder: Path) -> Mapping[str, Mapping[str, LabelScores]]:
    if not (folder / EVALUATION_NAME).is_file():
        return {}
    try:
        return {case.case: case.labels for case in read_evaluation(folder / EVALUATION_NAME).cases}
    except CtsegError:
        return {}  # of another version
