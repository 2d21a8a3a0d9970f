"""Build ``DatasetXXX_Name`` for nnU-Net from images and labels; no torch, no nnunetv2.

A labelling tool hands over here: :func:`start_dataset` once, :func:`check_and_write_case` per case.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError
from ctseg.files.atomic import write_text
from ctseg.files.geometry import Geometry
from ctseg.files.grid import FileGrid
from ctseg.files.volume import write_on_grid
from ctseg.train.description import FILE_ENDING
from ctseg.train.description import DatasetDescription as DatasetDescription
from ctseg.train.paths import case_name_problems, new_dataset_folder
from ctseg.train.scans import label_problems


def start_dataset(raw: Path, dataset_id: int, name: str, description: DatasetDescription) -> Path:
    """Make an empty ``DatasetXXX_Name`` that :func:`check_and_write_case` fills.

    Args:
        raw: The folder ``nnUNet_raw``.
        dataset_id: 1 to 999.
        name: Letters, digits, ``_`` and ``-``.
        description: Channels and labels.

    Returns:
        The new folder.

    Raises:
        SetupError: The id or the name cannot be used, or the id is taken.
    """
    folder = new_dataset_folder(raw, dataset_id, name)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    write_json(folder / "dataset.json", description.to_json(0))
    return folder


def check_and_write_case(
    folder: Path,
    case: str,
    channels: Sequence[NDArray[Any]],
    labels: NDArray[Any],
    affine_ras: NDArray[np.floating[Any]],
) -> None:
    """Check one labelled case and write it into a data set, for a labelling tool.

    Nothing is written unless everything is right. An existing case of this name is replaced.
    ``numTraining`` is kept up to date, so that the folder is a complete data set after every call.

    Args:
        folder: ``DatasetXXX_Name`` with its ``dataset.json``, as :func:`start_dataset` makes it.
        case: Name of the case: letters, digits, ``_``, ``-`` and ``.``.
        channels: Intensities of each channel, axes (z, y, x), in HU for CT.
        labels: Label map, axes (z, y, x), an integer type.
        affine_ras: 4 x 4, from voxel indices (x, y, z, 1) to millimetres in RAS+, as nibabel's ``affine``.

    Raises:
        InputError: All that is wrong with the case, told at once.
        OutputError: A file cannot be written.
    """
    description = DatasetDescription.read(folder)
    geometry, problems = _geometry_of(labels, affine_ras)
    problems = [*case_name_problems(case), *problems, *_array_problems(channels, labels, description)]
    problems += [problem.message for problem in label_problems(labels, description.values, case=case)]
    if problems or geometry is None:
        raise InputError(f"case {case}: {'; '.join(problems)}")
    grid = FileGrid(geometry, geometry.spacing_mm)
    for i, voxels in enumerate(channels):
        # nnU-Net knows no bool and reads no float16
        kind = np.float32 if voxels.dtype == np.float16 else np.uint8 if voxels.dtype == bool else voxels.dtype
        write_on_grid(image_path(folder, case, i), voxels.astype(kind), grid)
    write_on_grid(label_path(folder, case), labels.astype(label_dtype(labels)), grid)
    written = [file for file in (folder / "labelsTr").glob(f"*{FILE_ENDING}") if not file.name.startswith(".")]
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    write_json(folder / "dataset.json", {**content, "numTraining": len(written)})


def image_path(folder: Path, case: str, channel: int, part: str = "imagesTr") -> Path:
    """Return where a channel of a case lies."""
    return folder / part / f"{case}_{channel:04d}{FILE_ENDING}"


def label_path(folder: Path, case: str) -> Path:
    """Return where the label map of a case lies."""
    return folder / "labelsTr" / f"{case}{FILE_ENDING}"


def _geometry_of(labels: NDArray[Any], affine_ras: NDArray[np.floating[Any]]) -> tuple[Geometry | None, list[str]]:
    """Return where handed-over voxels lie, or what is wrong with their affine."""
    try:
        geometry = Geometry((1, 1, 1) if labels.ndim != 3 else labels.shape, np.asarray(affine_ras, np.float64))
    except ValueError as error:
        return None, [str(error)]
    if geometry.is_sheared:
        return None, ["the axes of the affine are not at right angles, which nnU-Net's reader refuses: resample"]
    return geometry, []


def _array_problems(
    channels: Sequence[NDArray[Any]], labels: NDArray[Any], description: DatasetDescription
) -> Iterator[str]:
    names = description.channel_names
    if len(channels) != len(names):
        yield f"expected {len(names)} channels ({', '.join(names)}), found {len(channels)}"
    if labels.ndim != 3:
        yield f"expected labels of axes (z, y, x), found shape {labels.shape}"
    for i, voxels in enumerate(channels):
        if voxels.shape != labels.shape:
            yield f"channel {i} has shape {voxels.shape}, the labels {labels.shape} (z, y, x)"
        if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
            yield f"channel {i} has {int((~np.isfinite(voxels)).sum())} voxels that are NaN or infinite"


def label_dtype(labels: NDArray[Any]) -> type[np.unsignedinteger[Any]]:
    """Return the smallest type that labels are written in."""
    return np.uint8 if int(labels.max(initial=0)) <= 255 else np.uint16


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=4) + "\n")
