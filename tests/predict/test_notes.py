"""Notes in an output folder's memory."""

from pathlib import Path

import pytest

from ctseg.documents import Document
from ctseg.errors import OutputError
from ctseg.predict.notes import read_notes, write_note


class Said(Document):
    text: str


def test_what_is_whole_is_read_in_order_and_the_rest_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "notes"
    for name in ("b", "a"):
        write_note(folder / f"{name}.json", Said(text=name))
    (folder / "cut_off.json").write_text('{"text": "c')
    (folder / "foreign.json").write_text('{"other": 1}')
    (folder / ".a.json.host.1.tmp.json").write_text('{"text": "being written"}')
    (folder / "folder.json").mkdir()
    assert list(read_notes(folder, Said)) == [(folder / "a.json", Said(text="a")), (folder / "b.json", Said(text="b"))]
    assert list(read_notes(tmp_path / "nowhere", Said)) == []


def test_a_note_that_cannot_be_written_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"^{tmp_path}/file/notes: cannot be made: Not a directory"):
        write_note(tmp_path / "file" / "notes" / "a.json", Said(text="a"))
