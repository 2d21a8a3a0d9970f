"""From names to finished files, through a real server."""

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import InputError, OutputError, SetupError, SpecError
from ctseg.files.cases import cases_of
from ctseg.files.volume import read_volume
from ctseg.predict.contract import contract_of
from ctseg.predict.options import BatchOptions
from ctseg.predict.segmenter import segment_volume
from ctseg.runs import folder as folder_module
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel, opened
from tests.support.threshold import write_scan
from tests.support.toy_models import toy_spec, write_toy_entry

DEMO = ServedModel("sarcoma", repository=Path(__file__).parents[2] / "model_repository")


@pytest.mark.live
def test_a_folder_gives_the_labels_of_one_scan_and_closes_its_server(ct_piece: Path, tmp_path: Path) -> None:
    with opened(DEMO) as predictor:
        labels = segment_volume(read_volume([ct_piece], predictor.spec.reader), predictor, mirroring=False)
    counts: list[int] = []
    report = segment_folder(
        ct_piece.parent, tmp_path, DEMO, BatchOptions(mirroring=False), progress_for=lambda n: _counted(n, counts)
    )
    assert counts == [1]
    assert [(case.case, case.status) for case in report.cases] == [("piece", "ok")]
    written = np.asarray(nib.load(tmp_path / "piece.nii.gz").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(written, labels)


def _counted(cases: int, counts: list[int]) -> folder_module.Progress:
    counts.append(cases)
    return folder_module.Progress()


def test_mirroring_inside_the_graph_cannot_be_switched_off() -> None:
    contract = _contract_mirroring("graph")
    with pytest.raises(SetupError, match="toy mirrors inside its graph") as caught:
        folder_module._check_mirroring(contract, BatchOptions(mirroring=False))
    assert "--" not in str(caught.value)
    folder_module._check_mirroring(contract, BatchOptions(mirroring=True))
    folder_module._check_mirroring(_contract_mirroring("client"), BatchOptions(mirroring=False))


def _contract_mirroring(where: str):
    return contract_of(toy_spec(mirror_axes=(0,), mirroring=where))


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one scan; no server may be started or asked."""
    monkeypatch.setattr(
        folder_module, "opened_segmenter", lambda *_, **__: pytest.fail("a server was started or asked")
    )
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in" / "a.nii.gz")
    return tmp_path / "in"


ELSEWHERE = ServedModel("toy", urls=("localhost:1",))


def test_what_is_wrong_with_the_input_is_told_before_a_server_is_asked(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    for name in ("empty", "pipe.nii.gz", "missing"):
        with pytest.raises(InputError, match=name):
            segment_folder(tmp_path / name, tmp_path / "out", ELSEWHERE, BatchOptions())
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_told_before_a_server_is_asked(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    (tmp_path / "self").symlink_to("self")
    for name in ("out", "out/below", "self"):
        with pytest.raises(OutputError, match="cannot write into"):
            segment_folder(scans, tmp_path / name, ELSEWHERE, BatchOptions())


def test_what_a_repository_says_of_its_model_is_looked_at_before_a_server_is_started(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = itertools.count(1)

    def segment(output: Path = tmp_path / "out", **changes: Any) -> None:
        write_toy_entry(tmp_path / "models", toy_spec(**changes), next(versions))
        toy = ServedModel("toy", repository=tmp_path / "models")
        segment_folder(scans, output, toy, BatchOptions(mirroring=False))

    with pytest.raises(SetupError, match="no model repository"):
        segment_folder(scans, tmp_path / "out", ServedModel("toy", repository=tmp_path / "none"), BatchOptions())
    with pytest.raises(SpecError, match=r"label maps would end in '\.gipl'"):
        segment(file_ending=".gipl")
    with pytest.raises(SetupError, match="mirrors inside its graph"):
        segment(mirror_axes=(0,), mirroring="graph")
    with pytest.raises(SetupError, match="would overwrite a scan"):
        segment(output=scans)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(SetupError, match="needs SimpleITK"):
        segment(file_ending=".mha")
    assert not (tmp_path / "out").exists()


def test_scans_in_sub_folders_are_found_where_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("p1/ct.nii.gz", "out/ct.nii.gz"):
        (tmp_path / name).parent.mkdir()
        write_scan(tmp_path / name)
    found = folder_module.scans_for(tmp_path, tmp_path / "out", BatchOptions(recursive=True))
    assert [case.name for case in cases_of(found, channels=1)] == ["p1_ct"]
