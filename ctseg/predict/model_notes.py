"""What an output folder remembers of each model that worked in it: what its labels and channels are."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from ctseg.documents import Document
from ctseg.errors import OutputError
from ctseg.files.atomic import write_text
from ctseg.model_spec import ModelSpec
from ctseg.predict.outcomes import MEMORY_NAME


class ModelNote(Document):
    """What a report says of a model.

    Attributes:
        channels: Names, in order.
        labels: Values in a label map by the label's name; a region has several.
    """

    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]


def write_model_note(output: Path, spec: ModelSpec, *, through: Path | None = None) -> None:
    """Remember a model, once, by the digest of its spec.

    Args:
        output: The output folder, which exists.
        spec: Of the model.
        through: Where a file lies that is not whole yet, on the same file system.

    Raises:
        OutputError: It cannot be written.
    """
    path = _folder(output) / f"{spec.digest}.json"
    if path.exists():
        return
    note = ModelNote(channels=tuple(channel.name for channel in spec.channels), labels=spec.named_values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made: {error.strerror or error}") from error
    write_text(path, json.dumps(note.model_dump(mode="json")), through=through)


def read_model_notes(output: Path) -> dict[str, ModelNote]:
    """Return what is known of models by the digests of their specs; what cannot be read is left out."""
    found = {}
    for path in sorted(_folder(output).glob("*.json")):
        try:
            found[path.stem] = ModelNote.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
    return found


def _folder(output: Path) -> Path:
    return output / MEMORY_NAME / "models"
