"""The small scan that proves an entry for whole scans: random voxels on the grid that the network works on.

Says in plain data what :mod:`ctseg.predict.whole_scan` says in types: the readiness process loads numpy only.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SCAN_SUFFIX = "_scan"
VOXELS = "voxels_int16"
SPACING = "spacing_mm"
PREVIOUS_LABELS = "previous_labels"
LABELS = "labels"
OPTIONS: Mapping[str, Any] = {"mirroring": False, "tile_step_size": "1"}
"""Parameters of the request: one look at each place is enough."""
SIDE = 8
"""Voxels along each axis; a network has one or more of them to see wherever spacings differ by less than that."""
LABEL_TYPES: Mapping[str, int] = {"UINT8": 1, "UINT16": 2}
"""Types of label maps, with the bytes of a voxel."""

_TYPES = {"int16": "INT16", "float64": "FP64", "uint16": "UINT16"}


@dataclass(frozen=True)
class SmallScan:
    """A scan to send.

    Attributes:
        tensors: The inputs by name.
    """

    tensors: Mapping[str, "np.ndarray[Any, Any]"]

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The inputs as Triton's JSON has them."""
        return [
            {"name": name, "shape": list(array.shape), "datatype": _TYPES[array.dtype.name]}
            for name, array in self.tensors.items()
        ]


def takes_scans(metadata: Mapping[str, Any]) -> bool:
    """Whether a model takes whole scans, by what Triton says of its tensors."""
    return any(tensor["name"] == VOXELS for tensor in metadata["inputs"])


def small_scan(name: str, version: str, parameters_of: Callable[[str], Mapping[str, str]]) -> SmallScan | None:
    """Return a scan that every entry for whole scans accepts: the values suit all normalisations.

    Args:
        name: Of the entry.
        version: Of the entry.
        parameters_of: Returns the parameters of the configuration of a model.

    Returns:
        None where the entry is a recipe of an older ctseg, which takes none.

    Raises:
        ValueError: The specs beside it cannot be read.
    """
    parameters = parameters_of(name)
    recipe = parameters.get(f"ctseg_recipe.{version}")
    if recipe is None:
        specs = [_spec_in(parameters_of(name.removesuffix(SCAN_SUFFIX)), version)]
    elif f"ctseg_scan.{version}" not in parameters:
        return None
    else:
        specs = [_spec_in(parameters_of(member["model"])) for member in json.loads(recipe)["members"]]
    channels = len(specs[0]["channels"])
    voxels = np.random.default_rng(0).integers(0, 256, (channels, SIDE, SIDE, SIDE), np.int16)
    spacing = np.max([_spacing_of_scan(spec) for spec in specs], axis=0).astype(np.float64)
    tensors: dict[str, np.ndarray[Any, Any]] = {VOXELS: voxels, SPACING: spacing}
    if recipe is None and specs[0].get("previous_stage"):
        tensors[PREVIOUS_LABELS] = np.zeros((SIDE, SIDE, SIDE), np.uint16)
    return SmallScan(tensors)


def problem_of_labels(tensors: Iterable[Mapping[str, Any]], data: bytes) -> str:
    """Return what is wrong with the answer to a small scan; empty where it is a label map on its grid.

    Args:
        tensors: The outputs as Triton's JSON has them.
        data: Their bytes.
    """
    found = next((tensor for tensor in tensors if tensor["name"] == LABELS), None)
    if found is None:
        return f"output {LABELS} is missing in the answer"
    expected = [SIDE, SIDE, SIDE]
    item_bytes = LABEL_TYPES.get(found.get("datatype", ""), 0)
    if found.get("shape") != expected or len(data) != item_bytes * math.prod(expected) or not data:
        return (
            f"output {LABELS}: expected a label map of shape {expected}, found {found.get('datatype')} of shape "
            f"{found.get('shape')} in {len(data)} bytes"
        )
    return ""


def _spec_in(parameters: Mapping[str, str], version: str | None = None) -> Mapping[str, Any]:
    """Return the spec of a model's version, of the newest without one."""
    numbers = [key.partition(".")[2] for key in parameters if key.startswith("ctseg_spec.")]
    number = version or max(numbers, key=int, default="")
    if number not in numbers:
        raise ValueError(f"the network beside it carries no spec of version {number or 'any'}")
    spec: dict[str, Any] = json.loads(parameters[f"ctseg_spec.{number}"])
    return spec


def _spacing_of_scan(spec: Mapping[str, Any]) -> list[float]:
    """Return the network's spacing along the axes of a scan; slices of a 2d network lie as far apart as its pixels."""
    spacing = spec["spacing_mm"]
    along = [max(spacing), *spacing] if len(spacing) == 2 else spacing
    return [along[spec["transpose_forward"].index(axis)] for axis in range(3)]
