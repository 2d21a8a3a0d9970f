"""nnU-Net's post-processing becomes plain data, and its pickle runs nothing."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from ctseg.errors import CheckpointError
from ctseg.model_spec import KeepLargest
from ctseg.nnunet.postprocessing import read_postprocessing

STEPS = [{"labels_or_regions": [1, 2, 3]}, {"labels_or_regions": 2}, {"labels_or_regions": (1, 3)}]
EXPECTED = (KeepLargest(labels=(1, 2, 3)), KeepLargest(labels=(2,)), KeepLargest(labels=(1, 3)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_nnunets_own_pickle_is_read(tmp_path: Path) -> None:
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    functions = [remove_all_but_largest_component_from_segmentation] * len(STEPS)
    (tmp_path / "postprocessing.pkl").write_bytes(pickle.dumps((functions, STEPS)))
    assert read_postprocessing(tmp_path) == EXPECTED


def test_the_json_beside_it_says_the_same(tmp_path: Path) -> None:
    content = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * len(STEPS),
        "postprocessing_kwargs": STEPS,
    }
    (tmp_path / "postprocessing.json").write_text(json.dumps(content))
    assert read_postprocessing(tmp_path) == EXPECTED


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil_was_here"),))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "postprocessing.pkl").write_bytes(pickle.dumps(([Evil()], [{}])))
    with pytest.raises(CheckpointError, match=r"it names pathlib.*touch|it names .*Path"):
        read_postprocessing(tmp_path)
    assert not (tmp_path / "evil_was_here").exists()


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    content = {"postprocessing_fns": ["fill_holes"], "postprocessing_kwargs": [{}]}
    (tmp_path / "postprocessing.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="fill_holes"):
        read_postprocessing(tmp_path)


def test_none_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_postprocessing(tmp_path)
