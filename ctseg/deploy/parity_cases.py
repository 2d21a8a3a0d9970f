"""Real scans to prove a network with: given ones, or what nnU-Net preprocessed for the training."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap
from ctseg.deploy.parity_data import Array, PreparedCase
from ctseg.deploy.trained_model import LoadedModel
from ctseg.errors import InputError, SetupError
from ctseg.files.cases import find_cases
from ctseg.files.volume import Volume, read_volume
from ctseg.model_spec import ModelSpec
from ctseg.nnunet.plans import resolve_configuration
from ctseg.numerics.prepare import Prepared, prepare
from ctseg.stages import stage

MOST_CASES = 4
"""One whole case, and a patch of each of the others."""


FirstStage = Callable[[Volume], LabelMap]
"""Gives the label map of a cascade's first stage."""


def prepare_scans(paths: Sequence[Path], spec: ModelSpec, first_stage: FirstStage | None = None) -> list[PreparedCase]:
    """Read and prepare scans as ``ctseg predict`` does.

    Args:
        paths: Scans, or folders of scans named as for ``ctseg predict``.
        spec: The network's contract.
        first_stage: Where the network is the second stage of a cascade.

    Raises:
        InputError: A scan cannot be used.
    """
    prepared = []
    with stage("scans are read and prepared") as reading:
        for name, volume in read_scans(paths, spec):
            previous = None if first_stage is None else first_stage(volume)
            case = prepare(volume.voxels, volume.spacing_mm, spec, previous=previous)
            prepared.append(PreparedCase(name, as_seen(case, spec)))
            reading.advance()
    return prepared


def read_scans(paths: Sequence[Path], spec: ModelSpec) -> Iterator[tuple[str, Volume]]:
    """Read scans, one after the other, with their names.

    Args:
        paths: See :func:`prepare_scans`.
        spec: Says how many channels there are, and by which reader they are read.

    Raises:
        InputError: A scan cannot be used.
    """
    for case in [case for path in paths for case in find_cases(path, channels=len(spec.channels))][:MOST_CASES]:
        if case.problem is not None:
            raise InputError(case.problem)
        yield case.name, read_volume(case.channels, spec.reader)


def as_seen(prepared: Prepared, spec: ModelSpec) -> Array:
    """Return all channels that the network sees of a prepared case, (channels, z, y, x): labels as zeros and ones."""
    return with_labels(prepared.voxels, prepared.previous, spec)


def with_labels(voxels: Array, labels: npt.NDArray[Any] | None, spec: ModelSpec) -> Array:
    """Return images, and a channel for each label of the previous stage where there is one, (channels, z, y, x)."""
    if labels is None or spec.previous_stage is None:
        return voxels
    one_hot = [labels == value for value in spec.previous_stage.labels]
    return np.concatenate([voxels, np.stack(one_hot).astype(np.float32)])


def preprocessed_cases(model: LoadedModel, spec: ModelSpec | None = None) -> list[PreparedCase]:
    """Return cases that nnU-Net preprocessed for the training; none where there are none.

    The second stage of a cascade gets the training's own label maps for those of the first stage. Read are
    ``*.b2nd`` and ``*.npz`` under ``nnUNet_preprocessed``, never the pickles beside them. The smallest comes first.

    Args:
        model: The trained model.
        spec: Its contract, where it is the second stage of a cascade.
    """
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 (nnU-Net's name)
    if not root:
        return []
    identifier = str(resolve_configuration(model.plans, model.configuration).get("data_identifier", ""))
    folder = Path(root) / model.dataset_name / identifier
    files = [
        file
        for file in [*folder.glob("*.b2nd"), *folder.glob("*.npz")]
        if not file.stem.endswith(("_seg", "_seg_from_prev_stage"))
    ]
    files = sorted(files, key=lambda file: (file.stat().st_size, file.name))
    smallest = files[:1] + files[len(files) // 4 :: max(1, len(files) // 4)]
    return [_read_preprocessed(file, spec) for file in dict.fromkeys(smallest[:MOST_CASES])]


def _read_preprocessed(file: Path, spec: ModelSpec | None) -> PreparedCase:
    voxels = _array_in(file, "data").astype(np.float32, copy=False)
    if spec is not None and spec.previous_stage is not None:
        beside = file.with_name(f"{file.stem}_seg.b2nd") if file.suffix == ".b2nd" else file
        voxels = with_labels(voxels, _array_in(beside, "seg")[0], spec)
    return PreparedCase(file.stem, np.ascontiguousarray(voxels))


def _array_in(file: Path, name: str) -> npt.NDArray[Any]:
    """Return an array of the file of a preprocessed case; ``name`` is what an ``.npz`` calls it."""
    try:
        if file.suffix == ".b2nd":
            import blosc2  # type: ignore[import-untyped]

            return np.asarray(blosc2.open(str(file), mode="r")[:])
        with np.load(file, allow_pickle=False) as archive:
            return np.asarray(archive[name])
    except ImportError as error:
        raise SetupError(f"{file}: needs blosc2, which comes with nnU-Net") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{file}: preprocessed case cannot be read: {error}") from error
