"""Which labels are compared: those of a model or a data set, by their names, or the values that are found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from ctseg.errors import InputError, SpecError
from ctseg.files.volume import MAX_LABEL
from ctseg.model_spec import SPEC_NAME, ModelSpec, Reader
from ctseg.predict.model_notes import read_model_notes

DATASET_NAME = "dataset.json"
_DEFAULT_READER: Reader = "SimpleITKIO"


@dataclass(frozen=True)
class ComparedLabels:
    """What is compared.

    Attributes:
        values: In a label map, by the label's name, the background left out; a region has several. In nnU-Net's order.
        keys: What nnU-Net's ``summary.json`` calls a label, by its name.
        ignore_label: Voxels that have it in the reference count for nothing.
        reader: nnU-Net's name of the rule by which files are read.

    Raises:
        ValueError: Nothing is named, a value is not from 0 to :data:`MAX_LABEL`, or the ignore label is a label too.
    """

    values: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, str] = field(default_factory=dict)
    ignore_label: int | None = None
    reader: Reader = _DEFAULT_READER

    def __post_init__(self) -> None:
        named = {value for values in self.values.values() for value in values}
        if not named:
            raise ValueError("expected labels beside the background, found none: name those that count")
        ignored = set() if self.ignore_label is None else {self.ignore_label}
        if outside := sorted(value for value in named | ignored if not 0 <= value <= MAX_LABEL):
            shown = f"{', '.join(map(str, outside[:5]))}{', …' if len(outside) > 5 else ''}"
            raise ValueError(
                f"expected values from 0 to {MAX_LABEL}, as label maps have them, found {shown}: name values that "
                "label maps have"
            )
        if ignored & named:
            raise ValueError(
                f"expected an ignore label that is none of the labels that are compared, found {self.ignore_label} "
                "among them: leave it out of one of the two"
            )
        if not self.keys:
            keys = {name: str(v[0]) if len(v) == 1 else str(tuple(v)) for name, v in self.values.items()}
            object.__setattr__(self, "keys", keys)


def labels_of_values(values: Sequence[int], ignore_label: int | None = None) -> ComparedLabels:
    """Return labels that have no names but their values, as ``nnUNetv2_evaluate_simple -l`` names them.

    Raises:
        InputError: One is the ignore label, or none that a label map can have, or there is none.
    """
    try:
        return ComparedLabels({str(value): (value,) for value in values}, ignore_label=ignore_label)
    except ValueError as error:
        raise InputError(str(error), settings=("label_values", "ignore_label")) from error


def with_ignore_label(labels: ComparedLabels, ignore_label: int) -> ComparedLabels:
    """Return labels with another ignore label.

    Raises:
        InputError: It is one of them, or none that a label map can have.
    """
    try:
        return replace(labels, ignore_label=ignore_label)
    except ValueError as error:
        raise InputError(str(error), settings=("ignore_label",)) from error


def labels_of_spec(spec: ModelSpec) -> ComparedLabels:
    """Return the labels of a model.

    Raises:
        SpecError: They cannot be compared: it has the background alone, or values that no label map has.
    """
    try:
        return ComparedLabels(spec.named_values, ignore_label=spec.ignore_label, reader=spec.reader)
    except ValueError as error:
        raise SpecError(f"{spec.name}: {error}") from error


def labels_of_dataset(content: Mapping[str, Any], *, source: str) -> ComparedLabels:
    """Return the labels of a data set.

    Args:
        content: ``dataset.json``.
        source: What errors call it.

    Raises:
        InputError: It names no labels as nnU-Net does.

    Source:
        nnU-Net's ``LabelManager``: the order of labels and regions, and what they are called in ``summary.json``.
    """
    try:
        declared = {
            str(name): tuple(int(part) for part in value) if isinstance(value, (list, tuple)) else int(value)
            for name, value in content["labels"].items()
        }
        ignore = declared.pop("ignore", None)
        values = {name: value if isinstance(value, tuple) else (value,) for name, value in declared.items()}
        named = {name: value for name, value in values.items() if set(value) != {0}}
        if any(len(value) > 1 for value in values.values()):
            keys = {name: str(declared[name]) for name in named}
        else:
            named = dict(sorted(named.items(), key=lambda item: item[1]))
            keys = {name: str(value[0]) for name, value in named.items()}
        reader = content.get("overwrite_image_reader_writer", _DEFAULT_READER)
        return ComparedLabels(
            named,
            keys,
            ignore[0] if isinstance(ignore, tuple) else ignore,
            reader if reader in get_args(Reader) else _DEFAULT_READER,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{source}: expected labels as nnU-Net's dataset.json has them, a value or several by name: {_told(error)}"
        ) from error


def labels_named_in(path: Path) -> ComparedLabels:
    """Return the labels that a file, or a file in a folder, names.

    Args:
        path: A ``ctseg.json`` or ``dataset.json`` under any name; a ``plans.json`` or another file with a
            ``dataset.json`` beside it; or a folder that holds one of the first two: a bundle, a model in a
            repository, a data set, a trained model.

    Raises:
        InputError: There is none, or it names no labels.
        SpecError: A model's spec is foreign.
    """
    if path.is_dir():
        for name in (SPEC_NAME, DATASET_NAME):
            if (path / name).is_file():
                return labels_named_in(path / name)
        raise InputError(
            f"{path}: expected {SPEC_NAME} (a bundle, a model in a repository) or {DATASET_NAME} (a data set, a "
            "trained model) in it, found neither",
            settings=("spec",),
        )
    content = _read_json(path)
    if "labels" not in content and "plans_name" in content:
        return labels_named_in(path.parent / DATASET_NAME)
    if isinstance(content.get("labels"), list):
        return labels_of_spec(ModelSpec.from_json(json.dumps(content), source=str(path)))
    return labels_of_dataset(content, source=str(path))


def labels_named_beside(labels: Path, references: Path) -> ComparedLabels | None:
    """Return the labels that a data set's ``dataset.json`` names, or the one model that wrote the label maps.

    Args:
        labels: Folder of label maps.
        references: Folder of references: ``dataset.json`` may lie in it or beside it.

    Returns:
        None where nothing names them.

    Raises:
        InputError: A ``dataset.json``, or what is remembered of the model, cannot be used.
    """
    for folder in (references, references.absolute().parent):
        if (folder / DATASET_NAME).is_file():
            return labels_named_in(folder / DATASET_NAME)
    notes = read_model_notes(labels)
    found = {json.dumps(dict(note.labels)): note.labels for note in notes.values()}
    if len(found) != 1:
        return None
    try:
        return ComparedLabels(next(iter(found.values())))
    except ValueError as error:
        raise InputError(f"{labels}: the model that wrote its label maps: {error}", settings=("spec",)) from error


def _told(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", settings=("spec",)) from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
