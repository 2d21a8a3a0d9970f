"""From names to finished files, through a real server."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import SetupError
from ctseg.files.volume import read_volume
from ctseg.predict.options import BatchOptions
from ctseg.predict.segmenter import segment_volume
from ctseg.runs import folder as folder_module
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel, opened
from tests.support.toy_models import toy_spec

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
    spec = _spec_mirroring("graph")
    with pytest.raises(SetupError, match="toy mirrors inside its graph") as caught:
        folder_module._check_mirroring(spec, BatchOptions(mirroring=False))
    assert "--" not in str(caught.value)
    folder_module._check_mirroring(spec, BatchOptions(mirroring=True))
    folder_module._check_mirroring(_spec_mirroring("client"), BatchOptions(mirroring=False))


def _spec_mirroring(where: str):
    return toy_spec(mirror_axes=(0,), mirroring=where)
