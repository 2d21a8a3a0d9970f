"""The command that makes a data set."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.nnunet import add_folders, given_folders
from ctseg.cli.parser import Parser
from ctseg.cli.stages import shown_stages
from ctseg.errors import InputError, SetupError

if TYPE_CHECKING:
    from ctseg.files.dataset_cases import ScanFolders
    from ctseg.train.decathlon import DecathlonTask
    from ctseg.train.label_lists import LabelList

_OF_MSD = ("images", "labels", "test_images", "image_suffix", "label", "labels_from", "regions_class_order", "channel")
"""What a folder of the Decathlon says by itself."""


def add_create(actions: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``dataset create``."""
    create = actions.add_parser("create", help="from a folder of images and one of labels")
    create.add_argument("-d", dest="dataset", metavar="ID", help="1 to 999, or DatasetXXX_Name")
    create.add_argument("--name", help="of DatasetXXX_NAME, where the id alone is given")
    _add_scans(create)
    _add_labels(create)
    create.add_argument(
        "--group_by", metavar="RULE",
        help="which cases are of one patient and stay in one fold: a regular expression for the beginning of a "
        "case's name ('[^_]+': up to the first _), or a CSV file with case and patient (FILE.csv:COLUMN)",
    )  # fmt: skip
    add_dicom(create)
    add_folders(create)
    create.set_defaults(run=_run_create)


def _add_scans(create: Parser) -> None:
    create.add_argument("--images", type=Path, metavar="DIR", help="NIfTI, NRRD, MHA; or DICOM series")
    create.add_argument(
        "--labels", type=Path, metavar="DIR",
        help="label maps; or DICOM segmentations and structure sets; may be the same folder",
    )  # fmt: skip
    create.add_argument(
        "--msd", type=Path, metavar="DIR",
        help="in place of all these: TaskXX_Name of the Medical Segmentation Decathlon, or of nnU-Net v1",
    )  # fmt: skip
    create.add_argument("--image_suffix", nargs="+", metavar="END", help="end of the names, per channel: _ct")
    create.add_argument("--label_suffix", default="", metavar="END", help="end of the names of label maps: _gtv")
    create.add_argument("--test_images", type=Path, metavar="DIR", help="becomes imagesTs")
    create.add_argument("--channel", action="append", metavar="NAME", help="once per channel, in order (default: CT)")


def _add_labels(create: Parser) -> None:
    create.add_argument(
        "--label",
        action="append",
        metavar="NAME=VALUE",
        help="once per label, without the background; several values (whole=1,2) make a region",
    )
    create.add_argument(
        "--labels_from", type=Path, metavar="FILE",
        help="in place of them: a dataset.json, JSON of names and values, CSV with value and name, or the labels of "
        "ITK-SNAP or 3D Slicer",
    )  # fmt: skip
    create.add_argument("--regions_class_order", type=int, nargs="+", metavar="VALUE", help="what each region writes")
    create.add_argument(
        "--remap", action="store_true",
        help="values that are not consecutive, such as lung=255, are written as 1, 2, … in their order; dataset.json "
        "records them",
    )  # fmt: skip
    create.add_argument(
        "--resample_labels", action="store_true",
        help="bring label maps on another grid of the same scan onto the grid of their image (default: refuse them)",
    )  # fmt: skip
    create.add_argument(
        "--roi", action="append", default=[], metavar="LABEL=NAME",
        help="what the label's segment or region is called in DICOM: * is any text, capitals do not matter "
        "(default: as the label)",
    )  # fmt: skip
    create.add_argument(
        "--precedence", nargs="+", default=[], metavar="LABEL",
        help="labels in the order in which they win where segments or regions overlap",
    )  # fmt: skip
    create.add_argument(
        "--missing_is_empty", action="store_true",
        help="take a label that no object of a case has as nowhere in it, with a warning (default: refuse the case)",
    )  # fmt: skip


def _run_create(args: argparse.Namespace) -> int:
    from ctseg.train.creation import create_dataset
    from ctseg.train.decathlon import decathlon_folder
    from ctseg.train.description import DatasetDescription
    from ctseg.train.dicom_labels import RegionRules
    from ctseg.train.label_maps import LabelMapRules, renumbered
    from ctseg.train.paths import require_paths

    task = _decathlon(args)
    if task is None and (missing := [f"--{name}" for name in ("images", "labels") if getattr(args, name) is None]):
        args.parser.error(f"expected {' and '.join(missing)}, or --msd")
    paths = require_paths({"nnUNet_raw"}, given_folders(args))
    if paths.raw is None:
        raise SetupError("nnUNet_raw is not set")
    number, name = _id_and_name(args.dataset, args.name, task)
    labels = _label_list(args) if task is None else task.labels
    values = renumbered(labels.labels, labels.regions_class_order)
    description = DatasetDescription(
        tuple(args.channel or labels.channel_names or ["CT"]),
        values.labels if args.remap else labels.labels,
        values.regions_class_order if args.remap else labels.regions_class_order,
    )
    try:
        with shown_stages():
            folder = create_dataset(
                paths.raw,
                number,
                name,
                description,
                _scan_folders(args) if task is None else task.folders,
                RegionRules(_names(args.roi), tuple(args.precedence), args.missing_is_empty),
                label_maps=LabelMapRules(values.values if args.remap else {}, args.resample_labels),
                group_by=args.group_by,
            )
    except InputError as error:
        if args.images is not None and (found := decathlon_folder(args.images)) is not None:
            text = f"{error}\n{found} looks like a task of the Decathlon or of nnU-Net v1: --msd {found} takes it whole"
            raise InputError(text, settings=error.settings) from error
        raise
    count = sum(1 for _ in (folder / "labelsTr").iterdir())
    if args.remap and values.values:
        print("written as: " + ", ".join(f"{old} as {new}" for old, new in values.values.items()))
    if args.group_by is not None:
        print(f"{folder / 'splits_final.json'}: folds that keep groups together; `ctseg plan` puts them in place")
    print(f"{folder}: {count} cases; next: `ctseg dataset verify -d {number}`")
    return 0


def _decathlon(args: argparse.Namespace) -> "DecathlonTask | None":
    if args.msd is None:
        return None
    from ctseg.train.decathlon import read_decathlon_task

    if given := [f"--{name}" for name in _OF_MSD if getattr(args, name)]:
        raise SetupError(f"--msd says it all: leave {', '.join(given)} out")
    return read_decathlon_task(args.msd)


def _scan_folders(args: argparse.Namespace) -> "ScanFolders":
    from ctseg.files.dataset_cases import ScanFolders

    return ScanFolders(
        images=args.images,
        labels=args.labels,
        image_suffixes=None if args.image_suffix is None else tuple(args.image_suffix),
        label_suffix=args.label_suffix,
        test_images=args.test_images,
        series=series_rules(args),
        case_name_from=tuple(args.case_name_from),
    )


def _label_list(args: argparse.Namespace) -> "LabelList":
    from ctseg.train.label_lists import LabelList, read_label_list

    order = None if args.regions_class_order is None else tuple(args.regions_class_order)
    if bool(args.label) == (args.labels_from is not None):
        raise SetupError("give the labels once: --label NAME=VALUE for each, or --labels_from FILE")
    if args.label:
        return LabelList(_labels(args.label), order)
    found = read_label_list(args.labels_from)
    return LabelList(found.labels, order or found.regions_class_order, found.channel_names)


def _id_and_name(words: str | None, name: str | None, task: "DecathlonTask | None") -> tuple[int, str]:
    """Return the id and the name of a new data set, of which ``DatasetXXX_Name`` has both."""
    from ctseg.train.paths import split_dataset_name

    if words is None and task is not None and task.number is not None:
        words = str(task.number)
    if words is None and name is not None and split_dataset_name(name)[0] is not None:
        words = name
    if words is None:
        raise SetupError("the data set needs an id: -d 101, or -d Dataset101_Name")
    number, said = split_dataset_name(words)
    if number is None:
        if not words.isdecimal():
            raise SetupError(f"-d {words}: expected an id from 1 to 999, or DatasetXXX_Name")
        number, said = int(words), ""
    if name is None and not said and task is not None:
        name = task.name
    if name is None and not said:
        raise SetupError(f"-d {words}: the data set needs a name, too: --name Lungs makes Dataset{number:03d}_Lungs")
    if name is not None and said and split_dataset_name(name)[1] != said:
        raise SetupError(f"-d {words} and --name {name} are two names: give the name once")
    return number, name or said


def _labels(words: Sequence[str]) -> dict[str, int | Sequence[int]]:
    labels: dict[str, int | Sequence[int]] = {"background": 0}
    for word in words:
        name, equals, value = word.rpartition("=")
        values = value.split(",")
        if not equals or not name or not all(part.isdecimal() for part in values):
            raise SetupError(f"--label {word}: expected NAME=VALUE or NAME=VALUE,VALUE{_better(word)}")
        numbers = [int(part) for part in values]
        if name in labels and labels[name] != numbers[0]:
            raise SetupError(f"--label {word}: {name} is given twice")
        labels[name] = numbers[0] if len(numbers) == 1 else numbers
    return labels


def _better(word: str) -> str:
    """Return what was meant, where it can be seen: the name and the value the other way round, or another sign."""
    if match := re.fullmatch(r"(\d+)[=:](.+)", word):
        return f", such as --label {match[2]}={match[1]}"
    if match := re.fullmatch(r"(.*[^\s:=])\s*[:=]\s*(\d+)", word):
        return f", such as --label {match[1]}={match[2]}"
    return f", such as --label {word}=1" if re.fullmatch(r"[\w -]+", word) else ""


def _names(words: list[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for word in words:
        label, equals, name = word.partition("=")
        if not equals or not label or not name:
            raise SetupError(f"--roi {word}: expected LABEL=NAME")
        if label in names:
            raise SetupError(f"--roi {word}: {label} is given twice; * stands for any text")
        names[label] = name
    return names
