"""One case in a process of its own: what it was estimated to take, and what it took at most.

``python -m tests.support.measured_case SHAPE`` prints both in bytes. The network is in the process and faster than
what comes after it, so that as many windows wait as ever can, whatever else the machine does.
"""

import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ctseg.arrays import Logits, Patches
from ctseg.files.cases import find_cases
from ctseg.model_spec import ModelSpec
from ctseg.predict.folder import segment_cases
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import MadeBy, Options
from ctseg.predict.predictor import Identity
from ctseg.predict.progress import Progress
from ctseg.predict.segment import BATCHES_AHEAD
from ctseg.predict.segmenter import WindowSegmenter
from ctseg.predict.staged_case import CaseStager
from tests.support.dicom_series import ct_series, write_series

DEMO_SPEC = Path(__file__).parents[2] / "model_repository" / "sarcoma" / "ctseg.json"
_PATIENCE_S = 300.0
LOWEST, HIGHEST = 0.9, 1.5
"""An estimate, of the peak that was measured."""
_PROCESSES = 3


@dataclass(frozen=True)
class Shape:
    """A scan, and in what its network differs from the demo's.

    Attributes:
        voxels: Along (x, y, z).
        spacing_mm: Likewise.
        spec: Fields of the spec that differ, beside those that the others here give.
        heads: Labels or regions.
        channels: Of the scan.
        normalization: Of each.
        dtype: Of the numbers in the file.
        ending: Of the file and of the label map.
        saves_probabilities: Whether they are written.
    """

    voxels: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    spec: dict[str, Any] = field(default_factory=dict)
    heads: int = 2
    channels: int = 1
    normalization: str = "CTNormalization"
    dtype: str = "int16"
    ending: str = ".nii.gz"
    saves_probabilities: bool = False

    @property
    def model_spec(self) -> ModelSpec:
        raw = json.loads(DEMO_SPEC.read_text())
        channel = {**raw["channels"][0], "normalization": self.normalization}
        raw["channels"] = [{**channel, "name": f"channel{i}"} for i in range(self.channels)]
        first = 1 if "regions_class_order" in self.spec else 0
        values = range(first, first + self.heads)
        raw["labels"] = [{"name": f"label{i}" if i else "background", "values": [i]} for i in values]
        written = ".nii.gz" if self.ending == ".dcm" else self.ending
        raw |= {"spacing_mm": (3.27, 0.977, 0.977), "mirroring": "none", "file_ending": written}
        return ModelSpec.validated({**raw, **self.spec}, source="measured")


_NETWORK_SPACING = (0.977, 0.977, 3.27)
_CUBIC = {
    "resampling_logits": {
        "function": "resample_data_or_seg_to_shape",
        "order": 3,
        "order_z": 0,
        "separate_z_anisotropy_threshold": 3.0,
    }
}
_TURNED = {"transpose_forward": (1, 0, 2), "reader": "NibabelIOWithReorient"}
_2D = {"configuration": "2d", "spacing_mm": (0.6, 0.6), "patch_size": (256, 256), "mirror_axes": ()}

SHAPES = {
    "small, many labels": Shape((160, 160, 50), _NETWORK_SPACING, {"patch_size": (24, 80, 80)}, heads=118),
    "large, anisotropic": Shape((512, 512, 150), (0.8, 0.8, 5.0), {"patch_size": (32, 128, 128)}, heads=5),
    "upsampled": Shape((200, 200, 60), (3.0, 3.0, 4.0), {"patch_size": (32, 128, 128)}),
    "downsampled": Shape((512, 512, 200), (0.6, 0.6, 1.5)),
    "two channels": Shape(
        (320, 320, 100), _NETWORK_SPACING, channels=2, dtype="float64", normalization="ZScoreNormalization"
    ),
    "two channels, turned": Shape(
        (320, 300, 100), (0.8, 0.8, 2.5), _TURNED, channels=2, normalization="ZScoreNormalization"
    ),
    "2d": Shape((512, 512, 120), (0.8, 0.8, 2.5), _2D, heads=10),
    "cubic logits": Shape((256, 256, 80), (0.8, 0.8, 3.27), _CUBIC, heads=8),
    "cubic logits, regions": Shape(
        (256, 256, 80), (0.8, 0.8, 3.27), {**_CUBIC, "regions_class_order": tuple(range(1, 9))}, heads=8
    ),
    "cubic logits, probabilities": Shape(
        (200, 200, 60), (0.8, 0.8, 3.27), _CUBIC, heads=8, saves_probabilities=True
    ),
    "probabilities": Shape((256, 256, 40), (0.8, 0.8, 3.27), heads=8, saves_probabilities=True),
    "mirrored here": Shape(
        (160, 160, 50), _NETWORK_SPACING, {"patch_size": (24, 80, 80), "mirroring": "client"}, heads=40
    ),
    "largest component": Shape((512, 512, 150), _NETWORK_SPACING, {"postprocessing": ({"labels": (1,)},)}),
    "MetaImage": Shape((512, 512, 150), _NETWORK_SPACING, ending=".mha", dtype="float64"),
    "NRRD": Shape((512, 512, 150), _NETWORK_SPACING, ending=".nrrd"),
    "DICOM": Shape((512, 512, 150), _NETWORK_SPACING, ending=".dcm"),
}  # fmt: skip


def measured_in_processes(module: str, *words: str) -> dict[str, int]:
    """Return what a case is estimated to take, and the highest peak of a few processes.

    How much is held at once depends on how threads meet: a process may stay below what the next one takes. No further
    one is started once the estimate lies near the peak.
    """
    found = {"estimate": 0, "peak": 0}
    for _ in range(_PROCESSES):
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True, timeout=550,
        )  # fmt: skip
        one = json.loads(done.stdout.splitlines()[-1])
        print(f"{words}: estimated {one['estimate'] >> 20} MiB, measured {one['peak'] >> 20} MiB")
        found = {**one, "peak": max(found["peak"], one["peak"])}
        if found["estimate"] <= HIGHEST * found["peak"]:
            break
    return found


class InstantPredictor:
    """Answers at once: the first head is the first channel, the second its opposite, the others lose."""

    max_in_flight = 2

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.identity = Identity(spec.name, 1, spec.digest, (), "in process")
        self.max_batch_size = spec.max_batch_size
        self.batches_answered = 0
        self.answered = threading.Condition()

    def predict(self, patches: Patches) -> Logits:
        logits = np.full((len(patches), self.spec.num_heads, *patches.shape[2:]), -1e9, np.float32)
        logits[:, 0] = patches[:, 0]
        np.negative(patches[:, 0], out=logits[:, 1])
        with self.answered:
            self.batches_answered += 1
            self.answered.notify_all()
        return logits


class FallingBehind(Progress):
    """Goes on only when the network has answered all that was sent to it."""

    def __init__(self, predictor: InstantPredictor) -> None:
        self._predictor = predictor
        self._batches, self._done, self._requests = 0, 0, 8 if predictor.spec.mirroring == "client" else 1

    def windows_planned(self, count: int) -> None:
        self._batches = -(-count // self._predictor.max_batch_size)

    def windows_done(self, count: int) -> None:
        self._done += 1
        sent = min(self._batches, self._done + BATCHES_AHEAD * self._predictor.max_in_flight - 1)
        with self._predictor.answered:
            assert self._predictor.answered.wait_for(
                lambda: self._predictor.batches_answered >= sent * self._requests, _PATIENCE_S
            )


class Watch(threading.Thread):
    """Looks all the time at the memory that is this process's own: without pages of files, which can be taken back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._stopped = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self._stopped.wait(0.001):
            self.most = max(self.most, status_bytes("RssAnon", "RssShmem"))

    def stop(self) -> int:
        self._stopped.set()
        self.join()
        return self.most


def status_bytes(*names: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) << 10 for name in names)


def write_scan(folder: Path, shape: Shape, voxels: tuple[int, int, int]) -> None:
    folder.mkdir()
    for channel in range(shape.channels):
        columns = np.random.default_rng(channel).integers(-900, 900, (*voxels[:2], 1))
        array = np.repeat(columns.astype(shape.dtype), voxels[2], axis=2)
        path = folder / f"case_{channel:04d}{shape.ending}"
        if shape.ending == ".dcm":
            x, y, z = shape.spacing_mm
            stored = (array + 1024).astype(np.uint16).T
            series = ct_series(stored.shape, pixel_spacing_mm=(y, x), slice_spacing_mm=z, stored=stored)
            write_series(folder, series.datasets)
        elif shape.ending.startswith(".nii"):
            nib.save(nib.Nifti1Image(array, np.diag([*shape.spacing_mm, 1.0])), path)
        else:
            import SimpleITK as sitk

            image = sitk.GetImageFromArray(array.T)
            image.SetSpacing(shape.spacing_mm)
            sitk.WriteImage(image, str(path), useCompression=True)


def segment(folder: Path, output: Path, shape: Shape) -> None:
    predictor = InstantPredictor(shape.model_spec)
    options = BatchOptions(save_probabilities=shape.saves_probabilities)
    cases = find_cases(folder, channels=shape.channels)
    report = segment_cases(cases, predictor, output, options, progress=FallingBehind(predictor))
    assert report.cases[0].status == "ok", report.cases[0].error


def estimated_bytes(folder: Path, shape: Shape) -> int:
    spec = shape.model_spec
    segmenter = WindowSegmenter(InstantPredictor(spec))
    options = BatchOptions(save_probabilities=shape.saves_probabilities)
    made_by = MadeBy(
        run="", model="", model_version="", spec_digest="", options=Options(tile_step_size=0.5, mirroring=True)
    )
    (case,) = find_cases(folder, channels=shape.channels)
    stager = CaseStager(segmenter, folder, options, MemoryBudget(), Progress(), made_by)
    estimate = stager.estimate(case, stager.case_files.asked(case))
    segmenter.close()
    return estimate.peak_bytes


def measured(shape: Shape, root: Path) -> dict[str, int]:
    write_scan(root / "small", shape, (40, 40, 20))
    write_scan(root / "scan", shape, shape.voxels)
    segment(root / "small", root / "out_small", shape)  # loads what is loaded once
    estimate = estimated_bytes(root / "scan", shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, own_before = status_bytes("VmRSS"), status_bytes("RssAnon", "RssShmem")
    watch = Watch()
    if shape.saves_probabilities:
        watch.start()
    segment(root / "scan", root / "out", shape)
    peak = watch.stop() - own_before if shape.saves_probabilities else status_bytes("VmHWM") - before
    return {"estimate": estimate, "peak": peak}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(SHAPES[sys.argv[1]], Path(folder))))
