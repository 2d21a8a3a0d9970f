"""Trainers are found without importing their files."""

from pathlib import Path

import pytest

from ctseg.errors import CheckpointError
from ctseg.nnunet.trainers import network_builder, trainer_folders


def test_folders_of_windows_are_not_split_at_their_drive() -> None:
    assert trainer_folders(r"C:\my trainers;D:\more\trainers;", ";") == [r"C:\my trainers", r"D:\more\trainers"]
    assert trainer_folders("/a:/b c", ":") == ["/a", "/b c"]
    assert trainer_folders("", ";") == []


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text)
    return file


def test_builder_is_the_nearest_class_that_may_build_and_nothing_is_imported(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    base = write(first, "base.py", "raise SystemExit\nclass Base:\n    def build_network_architecture(self): ...\n")
    write(second, "more.py", "import base\nclass Longer(base.Base):\n    def epochs(self): ...\n")
    write(second, "most.py", "class Longest(Longer): pass\n")
    found = network_builder("Longest", (first, second))
    assert (found.name, found.file, found.root, found.builds_network) == ("Base", base, first, True)


@pytest.mark.parametrize(
    "text",
    [
        "class Mine(Base, Mixin): pass\n",
        "@patched\nclass Mine(Base): pass\n",
        "class Mine(Base, metaclass=Meta): pass\n",
        "class Mine(Base):\n    build_network_architecture = other\n",
    ],
)
def test_class_that_could_build_by_other_code_counts_as_the_builder(tmp_path: Path, text: str) -> None:
    write(tmp_path, "base.py", "class Base:\n    def build_network_architecture(self): ...\n")
    write(tmp_path, "mine.py", text)
    assert network_builder("Mine", (tmp_path,)).name == "Mine"


def test_class_that_is_nowhere_or_its_own_parent_is_named(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "class Mine(Base): pass\nclass One(Two): pass\nclass Two(One): pass\n")
    with pytest.raises(CheckpointError, match=r"trained by Mine, and the class Base is neither in nnU-Net nor in"):
        network_builder("Mine", (tmp_path,))
    with pytest.raises(CheckpointError, match=r"trainer One inherits from itself"):
        network_builder("One", (tmp_path,))
