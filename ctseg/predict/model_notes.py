"""What an output folder remembers of each model that worked in it: what its labels and channels are."""

from collections.abc import Mapping
from pathlib import Path

from ctseg.documents import Document
from ctseg.model_spec import Reader
from ctseg.predict.contract import ScanContract
from ctseg.predict.notes import read_notes, write_note
from ctseg.predict.outcomes import MEMORY_NAME


class ModelNote(Document):
    """What a report says of a model.

    Attributes:
        channels: Names, in order.
        labels: Values in a label map by the label's name; a region has several.
        name: Of the model or the recipe; empty in what an older ctseg wrote, as are the next ones.
        reader: By which its scans are read.
        display_names: What people call labels, where that is known and differs.
        colours: Red, green, blue, 0 to 255, of labels that the model gives one.
    """

    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    name: str = ""
    reader: Reader = "SimpleITKIO"
    display_names: Mapping[str, str] = {}
    colours: Mapping[str, tuple[int, int, int]] = {}


def write_model_note(output: Path, contract: ScanContract, *, through: Path | None = None) -> None:
    """Remember what a model or a recipe takes and gives, once, by its digest.

    Args:
        output: The output folder, which exists.
        contract: What it takes and gives.
        through: Where a file lies that is not whole yet, on the same file system.

    Raises:
        OutputError: It cannot be written.
    """
    path = _folder(output) / f"{contract.digest}.json"
    if path.exists():
        return
    said = contract.presentation
    note = ModelNote(
        channels=contract.channels,
        labels=contract.labels,
        name=contract.name,
        reader=contract.reader,
        display_names={label: of.display_name for label, of in said.items() if of.display_name not in ("", label)},
        colours={label: of.colour for label, of in said.items() if of.colour is not None},
    )
    write_note(path, note, through=through)


def read_model_notes(output: Path) -> dict[str, ModelNote]:
    """Return what is known of models by the digests of their specs; what cannot be read is left out."""
    return {path.stem: note for path, note in read_notes(_folder(output), ModelNote)}


def _folder(output: Path) -> Path:
    return output / MEMORY_NAME / "models"
