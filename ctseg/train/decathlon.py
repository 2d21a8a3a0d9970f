"""Folders of the Medical Segmentation Decathlon, and of nnU-Net v1, which took over their order; no torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import InputError, SetupError
from ctseg.files.dataset_cases import ScanFolders
from ctseg.files.formats import stem_of
from ctseg.files.listing import list_folder
from ctseg.train.description import FILE
from ctseg.train.label_lists import LabelList, read_label_list

_TASK = re.compile(r"Task(\d+)_(.+)", re.IGNORECASE)
_IMAGES, _LABELS, _TESTS = "imagesTr", "labelsTr", "imagesTs"


@dataclass(frozen=True)
class DecathlonTask:
    """What a data set is made from.

    Attributes:
        number: Of the task; None where the folder's name has none.
        name: Of the task, without the number.
        folders: Where images and label maps lie.
        labels: With the names of the channels.
    """

    number: int | None
    name: str
    folders: ScanFolders
    labels: LabelList

    @property
    def channel_names(self) -> tuple[str, ...]:
        """In order."""
        return self.labels.channel_names or ()


def read_decathlon_task(folder: Path) -> DecathlonTask:
    """Read what there is in ``TaskXX_Name``.

    Args:
        folder: With ``dataset.json``, ``imagesTr``, ``labelsTr`` and perhaps ``imagesTs``.

    Raises:
        SetupError: Something of these is missing.
        InputError: ``dataset.json`` says nothing of labels or modalities.
    """
    if missing := [part for part in (FILE, _IMAGES, _LABELS) if not (folder / part).exists()]:
        raise SetupError(
            f"{folder}: no {', '.join(missing)}: expected a folder of the Decathlon, unpacked, such as Task09_Spleen"
        )
    labels = read_label_list(folder / FILE)
    if not labels.channel_names:
        raise InputError(f"{folder / FILE}: no modality, which names the channels")
    images = list_folder(folder / _IMAGES).scans
    has_tests = (folder / _TESTS).is_dir() and list_folder(folder / _TESTS).scans
    match = _TASK.fullmatch(folder.resolve().name)
    return DecathlonTask(
        None if match is None else int(match[1]),
        folder.resolve().name if match is None else match[2],
        ScanFolders(
            folder / _IMAGES,
            folder / _LABELS,
            test_images=folder / _TESTS if has_tests else None,
            # nnU-Net v1 had channels in files of their own already
            joined_channels=not all(re.search(r"_\d{4}$", stem_of(image)) for image in images),
        ),
        labels,
    )


def decathlon_folder(folder: Path) -> Path | None:
    """Return the task of the Decathlon that a folder of images is, or lies in; None where it is none."""
    return next(
        (
            place
            for place in (folder, folder.parent)
            if all((place / part).exists() for part in (FILE, _IMAGES, _LABELS))
        ),
        None,
    )
