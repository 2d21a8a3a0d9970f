"""What label maps score against references: the document that tables, ``ctseg results`` and pages share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from ctseg.documents import Document, told_by
from ctseg.errors import InputError
from ctseg.evaluate.surfaces import DEFINITION

EVALUATION_NAME = "evaluation.json"


class Scores(Document):
    """A document whose numbers may be NaN (not defined) or infinite; JSON has them as ``"NaN"`` and ``"Infinity"``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings")


class LabelScores(Scores):
    """A label or region of one case against its reference.

    Attributes:
        dice: nnU-Net's, as are the next seven; NaN where neither has the label.
        iou: Likewise.
        tp: Voxels that both have.
        fp: Voxels that the label map alone has.
        fn: Voxels that the reference alone has.
        tn: Voxels that neither has.
        n_pred: Voxels of the label map.
        n_ref: Voxels of the reference.
        hd95_mm: 95th percentile of the distances between the surfaces, the larger of both directions; NaN where neither
            has the label, infinite where one has.
        assd_mm: Average symmetric surface distance; likewise.
        nsd: Normalised surface Dice at each tolerance of the evaluation; NaN where neither has the label, 0 where one
            has.
        volume_ml: Of the label map.
        reference_volume_ml: Of the reference.
    """

    dice: float
    iou: float
    tp: int
    fp: int
    fn: int
    tn: int
    n_pred: int
    n_ref: int
    hd95_mm: float
    assd_mm: float
    nsd: tuple[float, ...]
    volume_ml: float
    reference_volume_ml: float


class EvaluatedCase(Scores):
    """One case.

    Attributes:
        case: Its name.
        labels: By the label's name.
        prediction_file: The label map, as nnU-Net's ``summary.json`` has it.
        reference_file: Likewise.
    """

    case: str
    labels: Mapping[str, LabelScores]
    prediction_file: str = ""
    reference_file: str = ""


class RefusedCase(Document):
    """A case that could not be compared, and why."""

    case: str
    error: str


class Evaluation(Scores):
    """The whole of ``evaluation.json``.

    Attributes:
        labels: Values in a label map by the label's name, the background left out; a region has several.
        keys: What nnU-Net's ``summary.json`` calls a label, by its name: ``1``, or ``(1, 2)`` for a region.
        ignore_label: Voxels that have it in the reference count for nothing.
        tolerances_mm: Of the normalised surface Dice.
        surface_definition: Of ``hd95_mm``, ``assd_mm`` and ``nsd``, on which tools do not agree.
        fingerprint: Of what was asked and of the names, sizes and times of the files: the same again is the same
            evaluation.
        cases: In order of their names.
        missing: Cases that have a reference and no label map.
        surplus: Cases that have a label map and no reference.
        refused: Cases that have both and could not be compared.
    """

    schema_version: Literal[1] = 1
    labels: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, str] = {}
    ignore_label: int | None = None
    tolerances_mm: tuple[float, ...]
    surface_definition: str = DEFINITION
    fingerprint: str = ""
    cases: tuple[EvaluatedCase, ...] = ()
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    refused: tuple[RefusedCase, ...] = ()

    def to_json(self) -> str:
        """Return the document."""
        return json.dumps(json.loads(self.model_dump_json()), indent=1)


def length_in_words(length_mm: float) -> str:
    """Return a tolerance as it stands in the names of columns: ``1``, ``2.5``; no two have one name."""
    return str(length_mm).removesuffix(".0")


def read_evaluation(path: Path) -> Evaluation:
    """Read what an evaluation found.

    Raises:
        InputError: It is none, or not whole.
    """
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: not an evaluation of ctseg: {told_by(error, whole='the document')}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
