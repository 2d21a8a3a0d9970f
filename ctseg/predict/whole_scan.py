"""What a client and a server say to each other of a whole scan: names of entries, tensors, parameters, errors.

One request is one scan, and its answer the label map. docs/api.md is this module in words, for every language.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctseg.documents import Document
from ctseg.errors import CtsegError, InferenceFailedError, InputError, ServerUnavailableError, SpecError
from ctseg.model_spec import MODEL_NAME_PATTERN

PROTOCOL = 1
"""Of requests and answers; what stands in a repository and the installed ctseg have to agree on it."""

SCAN_SUFFIX = "_scan"
"""Ends the name of the entry that takes whole scans for the model of the same name."""

VOXELS_INT16 = "voxels_int16"
"""Input, INT16 (channels, z, y, x): the scan as the reader of the spec yields it, where its values fit."""
VOXELS_FP32 = "voxels_fp32"
"""Input, FP32 (channels, z, y, x): the scan where they do not. One of the two is given."""
SPACING = "spacing_mm"
"""Input, FP64 (3,): between voxel centres along (z, y, x), in millimetres."""
PREVIOUS_LABELS = "previous_labels"
"""Input, UINT16 (z, y, x): the label map of the previous stage; given to the second stage of a cascade alone."""

LABELS = "labels"
"""Output, UINT8 or, where a label is above 255, UINT16 (z, y, x): the label map on the grid of the scan."""
LABELS_DEFLATED = "labels_deflated"
"""Output, UINT8 (bytes,): the same, C order, little endian, as a zlib stream; if it is asked for and LABELS is not."""
REPORT = "report"
"""Output, UINT8 (bytes,): UTF-8 of a :class:`ScanReport`, or of a :class:`ScanProgress`, as JSON."""

STEP_SIZE = "tile_step_size"
"""Parameter, number or text: step between windows as a fraction of the patch; 0.5 if absent."""
MIRRORING = "mirroring"
"""Parameter, bool: whether the network's answers are averaged over mirrored patches; true if absent."""
AGREEMENT = "agreement"
"""Parameter, bool: whether the report says how far the folds agree; false if absent. Only of models that have votes:
what serves those knows the parameter."""
MEMORY_ORDER = "memory_order"
"""Parameter, text: see :func:`memory_order_of`; ``z y x`` if absent."""
DIGEST = "spec_digest"
"""Parameter, text: the digest of the spec or recipe that is expected; any if absent."""
PROGRESS_OF = "progress_of"
"""Parameter, text: the id of another request; a request with it has no inputs, and is answered at once by REPORT."""
CANCEL = "cancel"
"""Parameter, text: likewise, and that other request is given up."""

MemoryOrder = tuple[int, int, int]
"""Axes from the one whose neighbours lie furthest apart in memory: 1, 2, 3 for z, y, x; negative: it runs backwards."""
_AXES = "zyx"
AS_SENT: MemoryOrder = (1, 2, 3)

ERROR_OF_CODE: Mapping[str, type[CtsegError]] = {
    "INVALID_ARG": InputError,
    "UNSUPPORTED": SpecError,
    "UNAVAILABLE": ServerUnavailableError,
    "INTERNAL": InferenceFailedError,
}
"""What a whole scan failed by, by Triton's name of the code: the scan, the entry, a server with too much to do."""


class ScanReport(Document):
    """What the answer to a scan says of it.

    Attributes:
        request: Id of the request.
        version: Of the model or recipe.
        digest: Of its spec, or of the recipe.
        seconds: By stage: ``waited``, ``prepare``, ``network``, ``restore``, ``total``.
        windows: How many there were.
        volumes_ml: Of each label by its name.
        warnings: What a person is to know of the case.
        agreement: How far the folds agree on each label by its name; empty unless it was asked for.
    """

    request: str
    model: str
    version: int
    digest: str
    seconds: Mapping[str, float]
    windows: int
    volumes_ml: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    agreement: Mapping[str, float] = {}

    def to_json(self) -> str:
        """Return the JSON that travels; what was not asked for is left out, since older clients do not know it."""
        return self.model_dump_json(exclude=None if self.agreement else {"agreement"})


class ScanProgress(Document):
    """How far a scan is.

    Attributes:
        request: Its id.
        state: ``unknown``: no such request, or it has been answered.
        windows_done: How many are back.
        windows: How many there are; 0 before they are planned.
        waiting: Scans that wait in this entry.
        running: Scans that are worked on.
    """

    request: str
    state: Literal["waiting", "running", "unknown"]
    windows_done: int = 0
    windows: int = 0
    waiting: int = 0
    running: int = 0


def scan_entry(model: str) -> str:
    """Return the name of the entry that takes whole scans for a model."""
    return f"{model}{SCAN_SUFFIX}"


def require_usable_name(name: str) -> None:
    """Refuse what cannot be the name of a model or recipe.

    Raises:
        SpecError: It has other characters than a name may have, or ends as those of the entries for whole scans do.
    """
    if len(name) > 128 or not re.fullmatch(MODEL_NAME_PATTERN, name):
        raise SpecError(
            f"{name[:100]!r} is no name of a model: expected at most 128 letters, digits, _ . and -, a letter or digit "
            "first, such as ct_total",
            settings=("name",),
        )
    if name.endswith(SCAN_SUFFIX):
        raise SpecError(
            f"{name}: names that end in {SCAN_SUFFIX} are those of entries for whole scans: take another name",
            settings=("name",),
        )


def memory_order_of(voxels: npt.NDArray[Any]) -> MemoryOrder:
    """Return how a scan (channels, z, y, x) lies in memory: the rounding of z-score means depends on it."""
    strides = voxels.strides[1:]
    axes = sorted(range(3), key=lambda axis: (-abs(strides[axis]), axis))
    first, second, third = (-(axis + 1) if strides[axis] < 0 else axis + 1 for axis in axes)
    return (first, second, third)


def in_memory_order(voxels: npt.NDArray[Any], order: MemoryOrder) -> npt.NDArray[Any]:
    """Return a scan (channels, z, y, x) with the same values, each channel in another order in memory."""
    if order == AS_SENT:
        return voxels
    axes = [abs(axis) for axis in order]
    where = (slice(None), *(slice(None, None, -1 if axis < 0 else 1) for axis in order))
    stored = np.empty((len(voxels), *(voxels.shape[axis] for axis in axes)), voxels.dtype)
    along_axes = (0, *(1 + axes.index(axis) for axis in (1, 2, 3)))
    turned: npt.NDArray[Any] = stored[where].transpose(along_axes)
    turned[...] = voxels
    return turned


def order_to_text(order: MemoryOrder) -> str:
    """Return a memory order as :data:`MEMORY_ORDER` has it, such as ``z -y x``."""
    return " ".join(f"{'-' if axis < 0 else ''}{_AXES[abs(axis) - 1]}" for axis in order)


def order_from_text(text: str) -> MemoryOrder:
    """Read a memory order.

    Raises:
        InputError: It is none.
    """
    words = text.split()
    if sorted(word.removeprefix("-") for word in words) != sorted(_AXES):
        raise InputError(
            f"{MEMORY_ORDER}: expected z, y and x, each once, from the furthest apart in memory on, and - before one "
            f"that runs backwards, such as 'z -y x', found {text[:40]!r}"
        )
    first, second, third = (
        (-1 if word.startswith("-") else 1) * (_AXES.index(word.removeprefix("-")) + 1) for word in words
    )
    return (first, second, third)
