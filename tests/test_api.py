"""The Python interface, as docs/python.md shows it."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import ctseg

REPOSITORY = Path(__file__).parents[1] / "model_repository"


def test_importing_costs_nothing_and_every_name_is_there():
    program = (
        "import sys, ctseg\n"
        "assert not {'numpy', 'nibabel', 'tritonclient'} & set(sys.modules)\n"
        "for name in ctseg.__all__: getattr(ctseg, name)\n"
        "assert not {'torch', 'nnunetv2', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ctseg.nothing


@pytest.mark.live
def test_a_file_an_array_and_a_folder_give_the_same_labels(ct_piece, tmp_path):
    with ctseg.embedded_server(REPOSITORY, ["sarcoma"]) as server:
        options = ctseg.ClientOptions(headers=server.headers)
        with ctseg.connect([server.url], "sarcoma", options=options) as predictor:
            scan = ctseg.read_volume([ct_piece], predictor.spec.reader)
            labels = ctseg.segment_volume(scan, predictor, mirroring=False)

            image = nib.load(ct_piece)
            voxels = np.asarray(image.dataobj).transpose(2, 1, 0)
            array = ctseg.volume_from_array(voxels, image.affine, predictor.spec.reader)
            assert np.array_equal(ctseg.segment_volume(array, predictor, mirroring=False), labels)

            cases = ctseg.find_cases(ct_piece.parent, channels=1)
            report = ctseg.segment_cases(cases, predictor, tmp_path, ctseg.BatchOptions(mirroring=False))
    assert [case.status for case in report.cases] == ["ok"]
    made_by = report.cases[0].made_by
    assert made_by is not None
    assert (made_by.model, made_by.model_version, made_by.servers) == ("sarcoma", "1", (server.url,))
    assert made_by.transport == predictor.identity.transport != "in process"
    assert labels.shape == voxels.shape
    assert labels.any(), "a tumour was meant to be found"
    assert np.array_equal(np.asarray(nib.load(tmp_path / "piece.nii.gz").dataobj).transpose(2, 1, 0), labels)
