"""What a request for a whole scan says, looked at before anything is allocated for it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap, Spacing
from ctseg.errors import InputError, SpecError
from ctseg.files.geometry import Geometry
from ctseg.files.grid import FileGrid
from ctseg.files.volume import VolumeHeader, non_finite_problem
from ctseg.predict.contract import ScanContract
from ctseg.predict.options import BatchOptions
from ctseg.predict.segment import Scan, WindowOptions
from ctseg.predict.whole_scan import (
    AGREEMENT,
    AS_SENT,
    CANCEL,
    DIGEST,
    LABELS,
    LABELS_DEFLATED,
    MEMORY_ORDER,
    MIRRORING,
    PREVIOUS_LABELS,
    PROGRESS_OF,
    SPACING,
    STEP_SIZE,
    VOXELS_FP32,
    VOXELS_INT16,
    MemoryOrder,
    in_memory_order,
    order_from_text,
)

_VOXEL_TYPES: Mapping[str, type[np.generic]] = {VOXELS_INT16: np.int16, VOXELS_FP32: np.float32}
_LEAST_MM, _MOST_MM = 1e-100, 1e100
"""Of a spacing whose square is a number still."""
_TRUE_OR_FALSE = {"true": True, "false": False}
_PARAMETERS = (STEP_SIZE, MIRRORING, AGREEMENT, DIGEST, MEMORY_ORDER, PROGRESS_OF, CANCEL)


@dataclass(frozen=True, eq=False)
class ScanRequest:
    """A request for a whole scan.

    Attributes:
        voxels: (channels, z, y, x), int16 or float32, a view of what Triton holds.
        spacing_mm: Along (z, y, x).
        previous: (z, y, x): label map of the previous stage, for a second one.
        options: How windows are laid and run.
        memory_order: How the scan lay in memory where it was read.
        deflated: Whether the label map goes back deflated.
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing
    previous: LabelMap | None
    options: WindowOptions
    memory_order: MemoryOrder
    deflated: bool

    @property
    def header(self) -> VolumeHeader:
        """What memory is estimated from."""
        shape = self.voxels.shape[1:]
        z, y, x = self.spacing_mm
        geometry = Geometry((shape[0], shape[1], shape[2]), np.diag([x, y, z, 1.0]))
        copied = 0 if self.memory_order == AS_SENT else 2 * self.voxels.nbytes
        grid = FileGrid(geometry, self.spacing_mm)
        return VolumeHeader(len(self.voxels), self.voxels.dtype, self.spacing_mm, geometry, grid, copied)

    @property
    def held_bytes(self) -> int:
        """What it holds while it waits."""
        return int(self.voxels.nbytes) + (0 if self.previous is None else int(self.previous.nbytes))

    def scan(self) -> Scan:
        """Return the scan as it lay in memory where it was read.

        Raises:
            InputError: A voxel is NaN or infinite.
        """
        for channel, voxels in enumerate(self.voxels):
            if problem := non_finite_problem(voxels):
                raise InputError(f"channel {channel}: {problem}")
        return Scan(in_memory_order(self.voxels, self.memory_order), self.spacing_mm)


@dataclass(frozen=True)
class Control:
    """A request about another one.

    Attributes:
        about: Its id.
        cancels: Whether it is given up.
    """

    about: str
    cancels: bool


def parameters_of(text: str) -> dict[str, Any]:
    """Return the parameters of a request, which Triton's stub gives as JSON; none where it gives nothing."""
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}


def control_of(parameters: Mapping[str, Any]) -> Control | None:
    """Return what a request says of another one; None for a scan."""
    for name in (CANCEL, PROGRESS_OF):
        if name in parameters:
            return Control(str(parameters[name]), cancels=name == CANCEL)
    return None


def read_request(
    inputs: Mapping[str, npt.NDArray[Any]],
    parameters: Mapping[str, Any],
    outputs: list[str],
    contract: ScanContract,
) -> ScanRequest:
    """Read a request for a scan, as far as that needs no look at its voxels.

    Args:
        inputs: Tensors by name, views.
        parameters: See :mod:`ctseg.predict.whole_scan`.
        outputs: Names of the tensors that are asked for.
        contract: Of the model or recipe.

    Raises:
        InputError: It cannot be segmented by this model.
        SpecError: It is meant for another model.
    """
    if unknown := sorted(set(parameters) - set(_PARAMETERS)):
        raise InputError(f"expected of the parameters {', '.join(_PARAMETERS)}, found {', '.join(unknown)[:80]}")
    wanted = str(parameters.get(DIGEST, contract.digest))
    if wanted != contract.digest:
        raise SpecError(f"{contract.name}: expected the spec {wanted[:12]}, found {contract.digest[:12]} served here")
    voxels = _voxels_of(inputs, contract)
    return ScanRequest(
        voxels=voxels,
        spacing_mm=_spacing_of(inputs),
        previous=_previous_of(inputs, voxels, contract),
        options=_options_of(parameters),
        memory_order=order_from_text(str(parameters[MEMORY_ORDER])) if MEMORY_ORDER in parameters else AS_SENT,
        deflated=LABELS_DEFLATED in outputs and LABELS not in outputs,
    )


def _voxels_of(inputs: Mapping[str, npt.NDArray[Any]], contract: ScanContract) -> npt.NDArray[Any]:
    given = [name for name in _VOXEL_TYPES if name in inputs]
    if len(given) != 1:
        raise InputError(
            f"expected one of the inputs {' and '.join(_VOXEL_TYPES)}, found {' and '.join(given) or 'none'}"
        )
    (name,) = given
    voxels, channels = inputs[name], len(contract.channels)
    if (
        voxels.ndim != 4
        or len(voxels) != channels
        or math.prod(voxels.shape) == 0
        or voxels.dtype != _VOXEL_TYPES[name]
    ):
        raise InputError(
            f"{name}: expected {np.dtype(_VOXEL_TYPES[name])} (channels, z, y, x) with {channels} channels "
            f"({', '.join(contract.channels)}), found {voxels.dtype} {voxels.shape}"
        )
    return voxels


def _spacing_of(inputs: Mapping[str, npt.NDArray[Any]]) -> Spacing:
    found = inputs.get(SPACING)
    if found is None or found.shape != (3,) or found.dtype != np.float64:
        told = "nothing" if found is None else f"{found.dtype} {found.shape}"
        raise InputError(f"{SPACING}: expected three float64 along (z, y, x), in millimetres, found {told}")
    z, y, x = (float(value) for value in found)
    if not all(_LEAST_MM <= value <= _MOST_MM for value in (z, y, x)):
        raise InputError(f"{SPACING}: expected positive millimetres along (z, y, x), found {[z, y, x]}")
    return (z, y, x)


def _previous_of(
    inputs: Mapping[str, npt.NDArray[Any]], voxels: npt.NDArray[Any], contract: ScanContract
) -> LabelMap | None:
    found = inputs.get(PREVIOUS_LABELS)
    if not contract.previous_stage:
        if found is not None:
            raise InputError(f"{PREVIOUS_LABELS}: {contract.name} is no second stage of a cascade: leave them out")
        return None
    if found is None:
        raise InputError(
            f"{PREVIOUS_LABELS}: {contract.name} needs the label map of {contract.previous_stage} on the grid of the "
            "scan; a recipe of both needs none"
        )
    if found.shape != voxels.shape[1:] or found.dtype != np.uint16:
        raise InputError(f"{PREVIOUS_LABELS}: expected uint16 {voxels.shape[1:]}, found {found.dtype} {found.shape}")
    return found


def _options_of(parameters: Mapping[str, Any]) -> WindowOptions:
    try:
        step_size = float(parameters.get(STEP_SIZE, 0.5))
        return BatchOptions(
            tile_step_size=step_size,
            mirroring=_bool_of(parameters, MIRRORING, default=True),
            agreement=_bool_of(parameters, AGREEMENT, default=False),
        ).window_options
    except ValueError as error:
        raise InputError(f"{STEP_SIZE}: {error}") from error


def _bool_of(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    known = _TRUE_OR_FALSE.get(str(value).lower())
    if known is None:
        raise InputError(f"{name}: expected true or false, found {str(value)[:20]!r}")
    return known
