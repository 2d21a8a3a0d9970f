"""The walk of docs/walk.md: what `make walk` types is what the page says, and what ctseg takes."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctseg.cli.main import build_parser
from scripts.walk import CHECKS, PAGE, commands_of, cut_pieces


def test_the_page_has_twelve_commands_that_ctseg_takes_and_a_check_for_each() -> None:
    commands = commands_of(PAGE.read_text(encoding="utf-8"))
    assert len(commands) == 12
    for program, *words in commands:
        assert program == "ctseg"
        build_parser().parse_args(words)
    names = [" ".join(words[:2]) if words[0] == "dataset" else words[0] for _, *words in commands]
    assert names == list(CHECKS)


def test_the_words_that_make_it_short_are_added_to_their_command() -> None:
    page = "```bash\nctseg plan -d 5\nctseg train 5 \\\n  3d -f all\n```\n| `ctseg train` | `--epochs 1` |\n"
    assert commands_of(page) == [
        ["ctseg", "plan", "-d", "5"],
        ["ctseg", "train", "5", "3d", "-f", "all", "--epochs", "1"],
    ]
    with pytest.raises(SystemExit, match="0 commands begin with ctseg tran"):
        commands_of(page.replace("| `ctseg train`", "| `ctseg tran`"))


def test_pieces_are_real_ct_with_labels_on_their_grids(tmp_path: Path) -> None:
    cut_pieces(tmp_path)
    for images, labels, count in (("my_cts", "my_labels", 8), ("new_cts", "new_labels", 2)):
        files = sorted((tmp_path / images).iterdir())
        assert [file.name for file in files] == sorted(file.name for file in (tmp_path / labels).iterdir())
        assert len(files) == count
        for file in files:
            image, drawn = nibabel.load(file), nibabel.load(tmp_path / labels / file.name)
            assert image.shape == drawn.shape == (48, 48, 30)
            np.testing.assert_array_equal(image.affine, drawn.affine)
            fat = np.asarray(image.dataobj)[np.asarray(drawn.dataobj) == 3]
            assert -150 < np.median(fat) < -40  # HU of fat, less at rims
