"""What an output folder remembers of a model."""

from dataclasses import replace
from pathlib import Path

from ctseg.predict.contract import contract_of
from ctseg.predict.model_notes import ModelNote, read_model_notes, write_model_note
from ctseg.presentation import LabelPresentation
from tests.support.threshold import ThresholdPredictor


def test_a_note_has_what_pages_say_of_labels(tmp_path: Path) -> None:
    contract = contract_of(ThresholdPredictor().spec)
    (label,) = contract.labels
    said = {label: LabelPresentation(display_name="Left lung", colour=(1, 2, 3))}
    write_model_note(tmp_path, replace(contract, presentation=said))
    (note,) = read_model_notes(tmp_path).values()
    assert note == ModelNote(
        channels=contract.channels,
        labels={label: (1,)},
        name="threshold",
        reader=contract.reader,
        display_names={label: "Left lung"},
        colours={label: (1, 2, 3)},
    )


def test_a_note_of_an_older_ctseg_is_read(tmp_path: Path) -> None:
    folder = tmp_path / ".ctseg" / "models"
    folder.mkdir(parents=True)
    (folder / "abc.json").write_text('{"channels": ["CT"], "labels": {"liver": [1]}}')
    note = read_model_notes(tmp_path)["abc"]
    assert (note.labels, note.name, note.reader, note.colours) == ({"liver": (1,)}, "", "SimpleITKIO", {})
