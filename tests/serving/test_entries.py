"""Entries of a model repository are read strictly: what is damaged or foreign is refused by name."""

import json
from pathlib import Path

import pytest

from ctseg.errors import SetupError, SpecError
from ctseg.serving.entries import list_entries, read_entry
from tests.support.toy_models import write_foreign_entry, write_toy_entry


def say_data_files(toy: Path, files: object) -> None:
    (toy / "1" / "build.json").write_text(json.dumps({"data_files": files}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda toy: (toy / "config.pbtxt").write_text('name: "toy" colour: "red"'), "not a configuration that Triton"),
        (lambda toy: (toy / "config.pbtxt").unlink(), "cannot be read"),
        (lambda toy: (toy / "1" / "model.onnx").unlink(), r"none of \['model.onnx'\]"),
        (lambda toy: (toy / "1" / "model.py").unlink(), "model.py is missing"),
        (lambda toy: (toy / "1" / "build.json").write_text("{"), "build.json cannot be read"),
        (lambda toy: (toy / "1" / "build.json").write_text("[]"), "build.json is not what a build writes"),
        (lambda toy: say_data_files(toy, ["model.onnx"]), "its data_files are no names of files beside it"),
        (lambda toy: say_data_files(toy, {"../../secret": 1}), "its data_files are no names of files beside it"),
        (lambda toy: say_data_files(toy, {"/etc/passwd": 1}), "its data_files are no names of files beside it"),
        (lambda toy: say_data_files(toy, {"..": 1}), "its data_files are no names of files beside it"),
        (lambda toy: say_data_files(toy, {"model.onnx.data": 1}), "expected 1 bytes of weights in .*, found no such"),
        (lambda toy: (toy / "1").rename(toy / "x"), "no version folder"),
        (lambda toy: (toy / "1").rename(toy / "2"), "no parameter ctseg_spec.2"),
        (
            lambda toy: (toy / "config.pbtxt").write_text(
                (toy / "config.pbtxt").read_text().replace("dims: 3", "dims: 4")
            ),
            r"expects the output logits TYPE_FP32 \[3, 6, 10, 14\], .* \['logits TYPE_FP32 \[4",
        ),
    ],
)
def test_a_damaged_entry_is_refused_by_name(root: Path, damage, message: str) -> None:
    write_toy_entry(root)
    damage(root / "toy")
    with pytest.raises(SpecError, match=message) as caught:
        read_entry(root / "toy")
    assert "toy" in str(caught.value)


def test_an_entry_that_ctseg_did_not_write_is_refused(root: Path) -> None:
    write_foreign_entry(root, "foreign", "return None")
    with pytest.raises(SpecError, match=r"foreign version 1: .*no parameter ctseg_spec.1"):
        list_entries(root)


def test_an_empty_or_missing_repository_is_a_setup_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="none: no such folder: write an entry"):
        list_entries(tmp_path / "none")
    with pytest.raises(SetupError, match="holds no model"):
        list_entries(tmp_path)
