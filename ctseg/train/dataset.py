"""Build ``DatasetXXX_Name`` for nnU-Net from images and labels; no torch, no nnunetv2.

A labelling tool hands over here: :func:`start_dataset` once, :func:`check_and_write_case` per case.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError, OutputError, SetupError
from ctseg.files.atomic import appearing, replacing, write_text
from ctseg.files.dataset_cases import (
    DatasetProblem,
    LabelledCase,
    ScanFolders,
    find_labelled_cases,
    find_test_cases,
)
from ctseg.files.dicom.names import DEVICE
from ctseg.files.formats import READ_ENDINGS, ChannelFiles
from ctseg.files.geometry import Geometry
from ctseg.files.grid import ChannelVolume, FileGrid
from ctseg.files.labelled_series import find_labelled_series, find_test_series
from ctseg.files.volume import write_on_grid
from ctseg.train.dicom_labels import LabelValues, RegionRules, labels_of, values_of_label
from ctseg.train.scans import image_problems, label_problems, read_or_tell

FILE_ENDING = ".nii.gz"
_SETTINGS = {"missing_label": "roi", "overlap": "precedence"}
"""What mends a kind of problem."""
_CASE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


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
    return {int(v) for value in labels.values() for v in values_of_label(value)}


def declared_label_problems(labels: LabelValues, regions_class_order: Sequence[int] | None) -> list[DatasetProblem]:
    """Return what is wrong with the labels of ``dataset.json`` by themselves."""
    problems = []

    def tell(kind: str, message: str) -> None:
        problems.append(DatasetProblem(None, kind, f"dataset.json: {message}"))

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
    geometry, problems = _geometry_of(labels, affine_ras)
    problems = [*_case_name_problems(case), *problems, *_array_problems(channels, labels, description)]
    problems += [problem.message for problem in label_problems(labels, description.values, case=case)]
    if problems or geometry is None:
        raise InputError(f"case {case}: {'; '.join(problems)}")
    grid = FileGrid(geometry, geometry.spacing_mm)
    for i, voxels in enumerate(channels):
        # nnU-Net knows no bool and reads no float16
        kind = np.float32 if voxels.dtype == np.float16 else np.uint8 if voxels.dtype == bool else voxels.dtype
        write_on_grid(_image_path(folder, case, i), voxels.astype(kind), grid)
    write_on_grid(_label_path(folder, case), labels.astype(_label_dtype(labels)), grid)
    written = [file for file in (folder / "labelsTr").glob(f"*{FILE_ENDING}") if not file.name.startswith(".")]
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    _write_json(folder / "dataset.json", {**content, "numTraining": len(written)})


def create_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    description: DatasetDescription,
    folders: ScanFolders,
    regions: RegionRules = RegionRules(),  # noqa: B008 (frozen)
) -> Path:
    """Build a data set from a folder of images and a folder of labels, in any format that can be read.

    An image belongs to the label whose name is the same once ending and suffix are taken off, a DICOM series to the
    segmentations and structure sets that refer to it. Labels are written as the smallest fitting integer type on the
    exact grid of their image; float label maps of whole numbers are converted. Nothing is written unless every case
    is right.

    Args:
        raw: The folder ``nnUNet_raw``.
        dataset_id: 1 to 999.
        name: Letters, digits, ``_`` and ``-``.
        description: Channels and labels.
        folders: Where images and labels lie, and how their names end.
        regions: Which segments and regions of DICOM objects are which label.

    Returns:
        The new folder.

    Raises:
        SetupError: The id or the name cannot be used, the id is taken, a folder or a package is missing, or the rules
            for regions do not fit the labels.
        InputError: All that is wrong with the cases, told at once.
        OutputError: The data set cannot be written.
    """
    target = _new_folder(raw, dataset_id, name)
    regions.check(description.labels)
    plan = _plan(folders, description)
    with _appearing(target) as part:
        for kind in ("imagesTr", "labelsTr", *(["imagesTs"] if plan.tests else [])):
            (part / kind).mkdir()
        problems = list(plan.problems)
        for case in plan.cases:
            problems += _add_case(part, case, description, regions, write=not problems)
        for test in plan.tests:
            problems += _add_test_case(part, test, write=not problems)
        if problems:
            listed = "\n".join(f"  {problem.message}" for problem in problems)
            settings = [_SETTINGS[problem.kind] for problem in problems if problem.kind in _SETTINGS]
            text = f"{target.name}: {len(problems)} problems, nothing was written:\n{listed}"
            raise InputError(text, settings=tuple(dict.fromkeys(settings)))
        _write_json(part / "dataset.json", description.to_json(len(plan.cases)))
    return target


@dataclass(frozen=True)
class _Plan:
    """What a data set will be made of.

    Attributes:
        cases: Those of which no file is missing.
        tests: Images without labels of which no file is missing.
        problems: Of names and numbers of files; what the files hold has not been looked at.
    """

    cases: tuple[LabelledCase, ...]
    tests: tuple[LabelledCase, ...]
    problems: tuple[DatasetProblem, ...]


def _plan(folders: ScanFolders, description: DatasetDescription) -> _Plan:
    for folder in (folders.images, folders.labels, folders.test_images):
        if folder is not None and not folder.is_dir():
            raise SetupError(f"{folder} is not a folder")
    channels, suffixes = len(description.channel_names), folders.image_suffixes
    if suffixes is not None and len(suffixes) != channels:
        raise SetupError(f"{channels} channels need as many image suffixes, found {list(suffixes)}")
    found, tests = find_labelled_cases(folders, channels=channels), find_test_cases(folders, channels=channels)
    series, test_series = find_labelled_series(folders), find_test_series(folders)
    if channels > 1 and (series.cases or test_series.cases):
        raise InputError(f"a DICOM series is one channel, and the data set has {channels}: convert the images")
    cases, problems = (*found.cases, *series.cases), (*found.problems, *series.problems)
    if not cases and not problems:
        ends = f" after {list(suffixes or [])} and {folders.label_suffix!r}" if suffixes or folders.label_suffix else ""
        raise InputError(
            f"no scans in {folders.images} and {folders.labels}: expected files ending in {', '.join(READ_ENDINGS)}"
            f"{ends}, or DICOM series with segmentations or structure sets that refer to them"
        )
    return _Plan(
        tuple(case for case in cases if (case.label or case.objects) and None not in case.channels),
        tuple(case for case in (*tests.cases, *test_series.cases) if None not in case.channels),
        (*_name_problems([case.name for case in cases]), *problems, *tests.problems, *test_series.problems),
    )


def _name_problems(names: Sequence[str]) -> Iterator[DatasetProblem]:
    by_folded: dict[str, str] = {}
    for name in names:
        texts = _case_name_problems(name)
        if (other := by_folded.setdefault(name.casefold(), name)) != name:
            texts.append(
                f"only upper and lower case tell it from {other}, which are one file on Windows and macOS: rename it"
            )
        for text in texts:
            yield DatasetProblem(name, "case_name", f"case {name}: {text}")


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; it becomes ``target`` unless something went wrong, and then it is gone."""
    target.parent.mkdir(exist_ok=True)
    try:
        with appearing(target) as part:
            yield part
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


def _add_case(
    part: Path, case: LabelledCase, description: DatasetDescription, regions: RegionRules, *, write: bool
) -> list[DatasetProblem]:
    """Check a complete case and, if wanted and nothing is wrong, write it."""
    files = [channel for channel in case.channels if channel is not None]
    label, voxels, dtype, problems = _read_labels(case, files, description, regions)
    images = []
    for i, channel in enumerate(files):
        image, unreadable = read_or_tell(channel, case=case.name)
        problems += unreadable
        if image is not None:
            images.append(image)
            problems += image_problems(image, label, case=case.name, file=channel.name, what=f"channel {i}")
    if voxels is None:
        return problems
    problems += label_problems(voxels, description.values, case=case.name, stored=dtype)
    if problems or not write:
        return problems
    for i, (channel, image) in enumerate(zip(files, images, strict=True)):
        _copy_or_convert(channel, image, _image_path(part, case.name, i))
    # the grid of the image, to the last digit
    write_on_grid(_label_path(part, case.name), voxels.astype(_label_dtype(voxels)), images[0].grid)
    return []


def _read_labels(
    case: LabelledCase, files: Sequence[ChannelFiles], description: DatasetDescription, regions: RegionRules
) -> tuple[ChannelVolume | None, NDArray[Any] | None, "np.dtype[Any] | None", list[DatasetProblem]]:
    """Return the label map, if it is one, the labels, their type in the file, and what is wrong."""
    if case.label is not None:
        label, problems = read_or_tell(case.label, case=case.name)
        return (None, None, None, problems) if label is None else (label, *_whole_numbers(label), problems)
    series = files[0].series
    if series is None or series.problem is not None:
        return None, None, None, []  # it is told where the image is read
    voxels, problems = labels_of(case, series, description.labels, regions)
    return None, voxels, None, problems


def _add_test_case(part: Path, case: LabelledCase, *, write: bool) -> list[DatasetProblem]:
    """Check a complete case without labels and, if wanted and nothing is wrong, write it."""
    problems: list[DatasetProblem] = []
    for i, channel in enumerate(case.channels):
        if channel is None:
            raise ValueError(f"test case {case.name}: expected every channel")
        image, unreadable = read_or_tell(channel, case=case.name)
        problems += unreadable
        if image is not None and write and not problems:
            _copy_or_convert(channel, image, _image_path(part, case.name, i, "imagesTs"))
    return problems


def _whole_numbers(label: ChannelVolume) -> tuple[NDArray[Any], "np.dtype[Any]"]:
    """Return labels and their type in the file; float label maps of whole numbers become integers."""
    voxels = label.voxels
    if voxels.dtype.kind == "f" and np.isfinite(voxels).all() and (voxels == np.rint(voxels)).all():
        return voxels.astype(np.int64), np.dtype(np.int64)
    return voxels, label.stored_dtype


def _copy_or_convert(source: ChannelFiles, image: ChannelVolume, target: Path) -> None:
    if len(source.paths) == 1 and source.name.endswith(FILE_ENDING):
        with replacing(target) as temporary:
            shutil.copyfile(source.paths[0], temporary)
    else:
        write_on_grid(target, image.voxels, image.grid)


def _image_path(folder: Path, case: str, channel: int, part: str = "imagesTr") -> Path:
    return folder / part / f"{case}_{channel:04d}{FILE_ENDING}"


def _label_path(folder: Path, case: str) -> Path:
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


def _case_name_problems(case: str) -> list[str]:
    if not _CASE.fullmatch(case):
        return ["a case's name has letters, digits, '_', '-' and '.' only: rename its files"]
    if DEVICE.fullmatch(case):
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
    write_text(path, json.dumps(content, indent=4) + "\n")
