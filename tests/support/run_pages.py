"""Output folders as runs leave them, with scans and label maps that are made here, for pages to show."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from ctseg.files.cases import Case, find_cases
from ctseg.files.identity import ScanPart, known, printable
from ctseg.predict.model_notes import ModelNote
from ctseg.predict.notes import write_note
from ctseg.predict.outcomes import MEMORY_NAME, CaseError, MadeBy, Options, Outcome, OutcomeStore, StageSeconds
from ctseg.predict.report import Report, fold_report

OBLIQUE = np.array(
    # LPS-like axes, turned by 10 degrees round the body's axis; (x, y, z) voxels to RAS+ in mm
    [[-1.476, 0.347, 0.0, 60.0], [-0.260, -1.969, 0.0, 90.0], [0.0, 0.0, 3.0, -50.0], [0.0, 0.0, 0.0, 1.0]]
)


@dataclass
class RunFolder:
    """A folder of scans and the label maps that a run has made of them.

    Args:
        root: An empty folder.
        labels: Of the model.
        colours: That the model gives.
    """

    root: Path
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"liver": (1,), "spleen": (2,), "node": (3,)})
    colours: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    model: str = "abdomen"

    def __post_init__(self) -> None:
        self.scans, self.output = self.root / "scans", self.root / "output"
        self.store = OutcomeStore(self.output)
        for folder in (self.scans, self.store.folder):
            folder.mkdir(parents=True, exist_ok=True)
        note = ModelNote(channels=("CT",), labels=self.labels, name=self.model, colours=self.colours)
        write_note(self.output / MEMORY_NAME / "models" / f"{self.digest}.json", note)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model.encode()).hexdigest()

    def add(
        self, name: str, hu: np.ndarray, labels: np.ndarray, affine: np.ndarray = OBLIQUE, **said: object
    ) -> Outcome:
        """Write a scan, (z, y, x), its label map, and what became of it."""
        nib.save(nib.Nifti1Image(hu.T.astype(np.int16), affine), self.scans / f"{name}_0000.nii.gz")
        path = self.output / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(labels.T, affine), path)
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        outcome = Outcome(
            case=printable(name), status="ok", made_by=self.made_by, ended="2026-11-28T04:00:00+00:00",
            inputs=tuple(known(part) for part in self.case(name).parts), outputs=(known(ScanPart((path,))),),
            volumes_ml={
                label: float(np.isin(labels, values).sum() * voxel_ml) for label, values in self.labels.items()
            },
            seconds=StageSeconds(read=0.4, prepare=0.6, network=5.0, restore=1.0, write=0.2, total=6.5),
        )  # fmt: skip
        outcome = outcome.model_copy(update=said)
        self.store.write(name, outcome)
        return outcome

    def add_failed(self, name: str, message: str) -> None:
        error = CaseError(type="InputError", message=message)
        self.store.write(name, Outcome(case=printable(name), status="failed", error=error, made_by=self.made_by))

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    @property
    def cases(self) -> list[Case]:
        return find_cases(self.scans, channels=1)

    @property
    def report(self) -> Report:
        return fold_report(self.output)

    @property
    def made_by(self) -> MadeBy:
        return MadeBy(
            run="run", model=self.model, model_version="1", spec_digest=self.digest, parity="proven",
            servers=("localhost:8001",), options=Options(tile_step_size=0.5, mirroring=True),
        )  # fmt: skip


def phantom(shape: tuple[int, int, int] = (30, 44, 60)) -> tuple[np.ndarray, np.ndarray]:
    """Return HU and labels, (z, y, x), with a landmark a label that has no twin under any flip or turn."""
    grid = np.indices(shape)
    middle = np.array(shape)[:, None, None, None] / 2
    hu = np.where((((grid - middle) / (middle * 0.95)) ** 2).sum(axis=0) < 1, 40, -1000)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[18:24, 10:16, 14:22] = 1
    labels[8:13, 26:34, 30:36] = 2
    labels[14:16, 20:22, 44:46] = 3
    return hu + 60 * labels, labels
