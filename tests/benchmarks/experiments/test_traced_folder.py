"""A clock that is told of every stage says when each case was where."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from benchmarks.experiments.traced_folder import SpanProgress, read_spans
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.predictor import Identity
from tests.support.toy_models import WEIGHTS, toy_logits, toy_spec


class ToyPredictor:
    """The toy network in this process, of one channel."""

    max_batch_size = 1
    max_in_flight = 2

    def __init__(self) -> None:
        spec = toy_spec()
        self.spec = toy_spec(channels=[spec.channels[0].model_dump()])
        self.identity = Identity(self.spec.name, 1, self.spec.digest, (), "in process")

    def predict(self, patches):
        return toy_logits(patches, WEIGHTS[:, :1])


@pytest.fixture
def spans(tmp_path):
    (tmp_path / "scans").mkdir()
    for case in ("a", "b"):
        voxels = np.random.default_rng(0).normal(0, 1, (28, 20, 12)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "scans" / f"{case}_0000.nii.gz")
    clock = SpanProgress(now=itertools.count().__next__)
    cases = find_cases(tmp_path / "scans", channels=1)
    segment_cases(cases, ToyPredictor(), tmp_path / "out", BatchOptions(mirroring=False), progress=clock)
    return clock.spans


def test_a_case_is_read_prepared_predicted_restored_and_written_one_stage_at_a_time(spans):
    for case in ("a", "b"):
        own = sorted((span for span in spans if span.row == case), key=lambda span: span.begin)
        stages = [span.stage for span in own]
        assert stages[:3] == ["read", "read", "prepare"], "headers, then voxels"
        assert stages[-1] == "write"
        assert set(stages[3:-1]) == {"network", "restore"}
        assert stages.count("network") >= 2, "the case has several windows"
        assert all(one.begin < one.end < other.begin for one, other in itertools.pairwise(own))


def test_spans_are_read_as_they_are_written(spans, tmp_path):
    path = tmp_path / "spans"
    path.write_text("".join(span.model_dump_json() + "\n" for span in spans))
    assert tuple(read_spans(path)) == spans
