"""Build ``DatasetXXX_Name`` for nnU-Net from images and labels; no torch, no nnunetv2.

A labelling tool hands over here: :func:`start_dataset` once, :func:`check_and_write_case` per case.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError, OutputError, SetupError
from ctseg.files.geometry import Geometry
from ctseg.files.grid import FileGrid
from ctseg.files.volume import ending_of
from ctseg.train.scans import (
    SCAN_ENDINGS,
    Problem,
    StoredScan,
    geometry_problems,
    label_problems,
    read_scan,
    write_scan,
)

FILE_ENDING = ".nii.gz"
_CASE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

LabelValues = Mapping[str, int | Sequence[int]]
"""Value in the label map by name; several values make a region."""


@dataclass(frozen=True)
class DatasetDescription:
    """What ``dataset.json`` says, apart from the number of cases.

    Attributes:
        channel_names: Name of each input channel, in order; ``CT`` is normalised as CT.
        labels: Value by name. ``background`` is 0; ``ignore``, if there, the highest.
        regions_class_order: Where a label has several values: what each region writes, in the order of ``labels``.
    """

    channel_names: tuple[str, ...]
    labels: LabelValues
    regions_class_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if problems := declared_label_problems(self.labels, self.regions_class_order):
            raise InputError("; ".join(problem.message for problem in problems))
        if not self.channel_names:
            raise InputError("a data set needs at least one channel")

    @property
    def values(self) -> set[int]:
        """Every value that a label map may hold."""
        return values_of(self.labels)

    def to_json(self, cases: int) -> dict[str, Any]:
        """Return the content of ``dataset.json``."""
        content: dict[str, Any] = {
            "channel_names": {str(i): name for i, name in enumerate(self.channel_names)},
            "labels": {k: v if isinstance(v, int) else [int(i) for i in v] for k, v in self.labels.items()},
            "numTraining": cases,
            "file_ending": FILE_ENDING,
        }
        if self.regions_class_order is not None:
            content["regions_class_order"] = list(self.regions_class_order)
        return content

    @classmethod
    def read(cls, folder: Path) -> "DatasetDescription":
        """Read ``dataset.json``.

        Raises:
            InputError: The file is missing, not JSON, or incomplete.
        """
        file = folder / "dataset.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            names = content["channel_names"]
            order = content.get("regions_class_order")
            return cls(
                tuple(str(names[str(i)]) for i in range(len(names))),
                content["labels"],
                None if order is None else tuple(order),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: {type(error).__name__}: {error}: is this a data set of nnU-Net v2?") from error


def values_of(labels: LabelValues) -> set[int]:
    """Return every value that the labels name."""
    return {int(v) for value in labels.values() for v in ([value] if isinstance(value, int) else value)}


def declared_label_problems(labels: LabelValues, regions_class_order: Sequence[int] | None) -> list[Problem]:
    """Return what is wrong with the labels of ``dataset.json`` by themselves."""
    problems = []

    def tell(kind: str, message: str) -> None:
        problems.append(Problem(None, kind, f"dataset.json: {message}"))

    if labels.get("background") != 0:
        tell("labels", f"label 'background' must be 0, found {labels.get('background')!r}")
    values = sorted(values_of(labels))
    if values != list(range(len(values))):
        missing = sorted(set(range(max(values, default=0))) - set(values))
        tell(
            "labels_not_consecutive",
            f"labels must be consecutive from 0, found {values}: "
            + (f"{missing} missing" if missing else "negative values are not allowed"),
        )
    ignore = labels.get("ignore")
    if ignore is not None and ignore != max(values):
        tell("labels", f"label 'ignore' must be the highest value, found {ignore!r} of {values}")
    regions = [value for name, value in labels.items() if name not in ("background", "ignore")]
    if any(not isinstance(value, int) and len(value) > 1 for value in regions):
        if regions_class_order is None or len(regions_class_order) != len(regions):
            tell(
                "labels",
                f"{len(regions)} regions need as many values in regions_class_order, found {regions_class_order}",
            )
    else:
        plain = [value if isinstance(value, int) else value[0] for value in labels.values()]
        if len(set(plain)) != len(plain):
            tell("labels", f"two labels have the same value: {dict(labels)}")
    return problems


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
    folder = _new_folder(raw, dataset_id, name)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    _write_json(folder / "dataset.json", description.to_json(0))
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
    problems = _case_name_problems(case)
    if len(channels) != len(description.channel_names):
        problems.append(
            f"expected {len(description.channel_names)} channels ({', '.join(description.channel_names)}), "
            f"found {len(channels)}"
        )
    geometry = None
    try:
        geometry = Geometry((1, 1, 1) if labels.ndim != 3 else labels.shape, np.asarray(affine_ras, np.float64))
    except ValueError as error:
        problems.append(str(error))
    else:
        if geometry.is_sheared:
            problems.append("the axes of the affine are not at right angles, which nnU-Net's reader refuses: resample")
    if labels.ndim != 3:
        problems.append(f"expected labels of axes (z, y, x), found shape {labels.shape}")
    for i, voxels in enumerate(channels):
        if voxels.shape != labels.shape:
            problems.append(f"channel {i} has shape {voxels.shape}, the labels {labels.shape} (z, y, x)")
        if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
            problems.append(f"channel {i} has {int((~np.isfinite(voxels)).sum())} voxels that are NaN or infinite")
    problems += [problem.message for problem in label_problems(labels, description.values, case=case)]
    if problems or geometry is None:
        raise InputError(f"case {case}: {'; '.join(problems)}")
    grid = FileGrid(geometry, geometry.spacing_mm)
    for i, voxels in enumerate(channels):
        # nnU-Net knows no bool and reads no float16
        kind = np.float32 if voxels.dtype == np.float16 else np.uint8 if voxels.dtype == bool else voxels.dtype
        write_scan(folder / "imagesTr" / f"{case}_{i:04d}{FILE_ENDING}", voxels.astype(kind), grid)
    write_scan(folder / "labelsTr" / f"{case}{FILE_ENDING}", labels.astype(_label_dtype(labels)), grid)
    count = sum(1 for _ in (folder / "labelsTr").glob(f"*{FILE_ENDING}"))
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    _write_json(folder / "dataset.json", {**content, "numTraining": count})


def create_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    description: DatasetDescription,
    *,
    images: Path,
    labels: Path,
    image_suffixes: Sequence[str] | None = None,
    label_suffix: str = "",
    test_images: Path | None = None,
) -> Path:
    """Build a data set from a folder of images and a folder of labels (NIfTI, NRRD, MHA).

    An image belongs to the label whose name is the same once ending and suffix are taken off. Labels
    are written as the smallest fitting integer type on the exact grid of their image; float label
    maps of whole numbers are converted. Nothing is written unless every case is right.

    Args:
        raw: The folder ``nnUNet_raw``.
        dataset_id: 1 to 999.
        name: Letters, digits, ``_`` and ``-``.
        description: Channels and labels.
        images: Folder of images.
        labels: Folder of label maps; may be the same.
        image_suffixes: End of an image's name for each channel (``_ct``); None takes nnU-Net's
            ``_0000`` …, and for one channel also names without it.
        label_suffix: End of a label map's name (``_gtv``).
        test_images: Folder of images for ``imagesTs``.

    Returns:
        The new folder.

    Raises:
        SetupError: The id or the name cannot be used, the id is taken, or a folder is missing.
        InputError: All that is wrong with the cases, told at once.
        OutputError: The data set cannot be written.
    """
    target = _new_folder(raw, dataset_id, name)
    for folder in (images, labels, *([test_images] if test_images else [])):
        if not folder.is_dir():
            raise SetupError(f"{folder} is not a folder")
    channels = len(description.channel_names)
    cases = _cases_in(images, channels, image_suffixes, skip=None if images != labels else label_suffix)
    label_files = {
        case: file
        for case, file in _scans_in(labels, label_suffix).items()
        # in one common folder the images are no labels
        if images != labels or not any(file in files.values() for files in cases.values())
    }
    problems = []
    by_folded: dict[str, str] = {}
    for case in sorted(set(cases) | set(label_files)):
        if (other := by_folded.setdefault(case.casefold(), case)) != case:
            text = f"only upper and lower case tell it from {other}, which are one file on Windows and macOS: rename it"
            problems.append(Problem(case, "case_name", f"case {case}: {text}"))
        problems += [Problem(case, "case_name", f"case {case}: {text}") for text in _case_name_problems(case)]
        if case not in label_files:
            problems.append(Problem(case, "missing_label_file", f"case {case}: no label map in {labels}"))
        elif case not in cases:
            problems.append(Problem(case, "surplus_label_file", f"case {case}: no image in {images}"))
        if missing := sorted(set(range(channels)) - set(cases.get(case, range(channels)))):
            problems.append(Problem(case, "missing_channel", f"case {case}: channels {missing} are missing"))
    if not cases and not label_files:
        raise InputError(
            f"no scans in {images} and {labels}: expected files ending in {', '.join(SCAN_ENDINGS)}"
            + (f" after {image_suffixes} and {label_suffix!r}" if image_suffixes or label_suffix else "")
        )
    tests = {} if test_images is None else _cases_in(test_images, channels, image_suffixes, skip=label_suffix or None)
    raw.mkdir(exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=raw))
    try:
        for kind in ("imagesTr", "labelsTr", *(["imagesTs"] if tests else [])):
            (part / kind).mkdir()
        complete = [case for case in sorted(cases) if case in label_files and len(cases[case]) == channels]
        for case in complete:
            problems += _add_case(part, case, cases[case], label_files[case], description)
        for case, files in sorted(tests.items()):
            problems += _add_test_case(part, case, files, channels)
        if problems:
            listed = "\n".join(f"  {problem.message}" for problem in problems)
            raise InputError(f"{target.name}: {len(problems)} problems, nothing was written:\n{listed}")
        _write_json(part / "dataset.json", description.to_json(len(complete)))
        part.chmod(0o755)
        part.rename(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _add_case(
    part: Path, case: str, files: Mapping[int, Path], label_file: Path, description: DatasetDescription
) -> list[Problem]:
    problems: list[Problem] = []
    label, images = None, {}
    try:
        label = read_scan(label_file)
    except InputError as error:
        problems.append(Problem(case, "unreadable", f"case {case}: {error}"))
    for i, file in sorted(files.items()):
        try:
            images[i] = read_scan(file)
        except InputError as error:
            problems.append(Problem(case, "unreadable", f"case {case}: {error}"))
            continue
        if bad := images[i].non_finite:
            problems.append(Problem(case, "nan", f"case {case}: {bad} voxels of {file.name} are NaN or infinite"))
        if label is not None:
            problems += geometry_problems(images[i], label, case=case, what=f"channel {i}")
    if label is None:
        return problems
    voxels, dtype = label.voxels, label.dtype
    if voxels.dtype.kind == "f" and np.isfinite(voxels).all() and (voxels == np.rint(voxels)).all():
        voxels, dtype = voxels.astype(np.int64), np.dtype(np.int64)
    problems += label_problems(voxels, description.values, case=case, stored=dtype)
    if problems:
        return problems
    for i, image in images.items():
        _copy_or_convert(files[i], image, part / "imagesTr" / f"{case}_{i:04d}{FILE_ENDING}")
    # the grid of the image, to the last digit
    target = part / "labelsTr" / f"{case}{FILE_ENDING}"
    write_scan(target, voxels.astype(_label_dtype(voxels)), images[0].scan.grid)
    return []


def _add_test_case(part: Path, case: str, files: Mapping[int, Path], channels: int) -> list[Problem]:
    if missing := sorted(set(range(channels)) - set(files)):
        return [Problem(case, "missing_channel", f"test case {case}: channels {missing} are missing")]
    try:
        for i, file in files.items():
            _copy_or_convert(file, read_scan(file), part / "imagesTs" / f"{case}_{i:04d}{FILE_ENDING}")
    except InputError as error:
        return [Problem(case, "unreadable", f"test case {case}: {error}")]
    return []


def _copy_or_convert(source: Path, image: StoredScan, target: Path) -> None:
    if source.name.endswith(FILE_ENDING):
        shutil.copyfile(source, target)
    else:
        write_scan(target, image.voxels, image.scan.grid)


def _scans_in(folder: Path, suffix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        ending = ending_of(file, SCAN_ENDINGS)
        if ending is None or not file.is_file() or not file.name[: -len(ending)].endswith(suffix):
            continue
        case = file.name[: len(file.name) - len(ending) - len(suffix)]
        if case in found:
            raise InputError(f"case {case}: {found[case].name} and {file.name} in {folder} are the same case")
        found[case] = file
    return found


def _cases_in(
    folder: Path, channels: int, suffixes: Sequence[str] | None, *, skip: str | None
) -> dict[str, dict[int, Path]]:
    """Files by case and channel; those ending in ``skip`` are labels in a common folder."""
    if suffixes is not None and len(suffixes) != channels:
        raise SetupError(f"{channels} channels need as many image suffixes, found {list(suffixes)}")
    cases: dict[str, dict[int, Path]] = {}
    for i in range(channels):
        for case, file in _scans_in(folder, suffixes[i] if suffixes is not None else f"_{i:04d}").items():
            cases.setdefault(case, {})[i] = file
    if suffixes is None and channels == 1:
        named = {file for files in cases.values() for file in files.values()}
        plain = {case: file for case, file in _scans_in(folder, "").items() if file not in named}
        if skip:
            plain = {case: file for case, file in plain.items() if not case.endswith(skip)}
        for case, file in plain.items():
            cases.setdefault(case, {}).setdefault(0, file)
    return cases


def _case_name_problems(case: str) -> list[str]:
    if not _CASE.fullmatch(case):
        return ["a case's name has letters, digits, '_', '-' and '.' only: rename its files"]
    if _DEVICE.fullmatch(case):
        return ["Windows has a device of this name and lets no file have it: rename its files"]
    if re.search(r"_\d{4}$", case):
        return ["the name ends like nnU-Net's channel numbers (_0000): rename its files"]
    return []


def _new_folder(raw: Path, dataset_id: int, name: str) -> Path:
    if not 1 <= dataset_id <= 999:
        raise SetupError(f"data set id {dataset_id}: expected 1 to 999")
    if not _NAME.fullmatch(name):
        raise SetupError(f"data set name {name!r}: letters, digits, '_' and '-' only")
    if taken := sorted(raw.glob(f"Dataset{dataset_id:03d}_*")):
        raise SetupError(f"data set id {dataset_id} is taken by {taken[0]}: remove it, or choose another id")
    return raw / f"Dataset{dataset_id:03d}_{name}"


def _label_dtype(labels: NDArray[Any]) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if int(labels.max(initial=0)) <= 255 else np.uint16


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    os.replace(part, path)  # noqa: PTH105 (replaces on Windows as well)
