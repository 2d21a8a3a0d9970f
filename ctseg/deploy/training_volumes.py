"""How large each label is in the training set: what was found in a scan is held against it."""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.compiled.cpus import usable_cpus
from ctseg.deploy.trained_model import LoadedModel
from ctseg.errors import CtsegError, InputError
from ctseg.files.volume import read_volume
from ctseg.model_spec import ModelSpec
from ctseg.numerics.volumes import volumes_ml
from ctseg.presentation import LabelPresentation
from ctseg.stages import stage

_MOST_AT_ONCE = 4
"""Label maps in memory."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingLabels:
    """The label maps that a model was trained with, where they are at hand.

    Attributes:
        folder: Where they lie.
        files: One for each case.
    """

    folder: Path
    files: tuple[Path, ...]


def training_labels_of(model: LoadedModel) -> TrainingLabels | None:
    """Return the label maps of a model's data set, of training and validation cases; None: they are not at hand.

    Those that nnU-Net copied as it preprocessed come before those that lie in its raw folder.

    Args:
        model: The trained model.
    """
    ending = str(model.dataset.get("file_ending", ".nii.gz"))
    for variable, name in (("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr")):
        if root := os.environ.get(variable):
            folder = Path(root) / model.dataset_name / name
            files = sorted(file for file in folder.glob(f"*{ending}") if not file.name.startswith("."))
            if files:
                return TrainingLabels(folder, tuple(files))
    return None


def training_volumes_ml(labels: TrainingLabels, spec: ModelSpec) -> Mapping[str, tuple[float, float, float]]:
    """Return the least, the median and the largest volume of each label or region, by its name.

    A case without a label has 0 of it. A label map that cannot be read is left out, and told.

    Args:
        labels: The label maps.
        spec: The network's contract: its labels, and by which reader they are read.
    """

    def volumes(file: Path) -> Mapping[str, float] | None:
        try:
            return _volumes_in(file, spec)
        except (CtsegError, OSError) as error:
            _log.warning("%s is left out of the training set's volumes: %s", file.name, error)
            return None

    of_cases = []
    with (
        stage("volumes of the training set's labels", len(labels.files), unit="label maps") as progress,
        ThreadPoolExecutor(min(_MOST_AT_ONCE, usable_cpus())) as pool,
    ):
        for found in pool.map(volumes, labels.files):
            progress.advance()
            if found is not None:
                of_cases.append(found)
    if not of_cases:
        return {}
    return {name: _summary([found[name] for found in of_cases]) for name in spec.named_values}


def with_training_volumes(
    presentation: Mapping[str, LabelPresentation], volumes: Mapping[str, tuple[float, float, float]]
) -> Mapping[str, LabelPresentation]:
    """Return what is said of labels with the training set's volumes, where nothing is said of those yet.

    Args:
        presentation: By the label's name.
        volumes: Least, median and largest, in millilitres, by the label's name.
    """
    found = dict(presentation)
    for name, volume in volumes.items():
        said = found.get(name, LabelPresentation())
        if said.training_volumes_ml is None:
            found[name] = said.model_copy(update={"training_volumes_ml": volume})
    return found


def _volumes_in(file: Path, spec: ModelSpec) -> Mapping[str, float]:
    volume = read_volume([file], spec.reader)
    values = volume.voxels[0]
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        raise InputError(f"expected labels, found values from {lowest} to {highest}")
    return volumes_ml(values.astype(np.uint16), spec.named_values, volume.geometry.spacing_mm)


def _summary(volumes: Sequence[float]) -> tuple[float, float, float]:
    return (min(volumes), round(float(np.median(volumes)), 6), max(volumes))
