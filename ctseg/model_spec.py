"""ModelSpec: all that a client must do before and after the network, in one document.

Training and serving meet here. The document is JSON; Triton carries it to every client in the
model's ``parameters``. Unknown fields, kinds and schema versions are refused, never guessed.

Version 2 added ``previous_stage`` in this form, ``votes`` and ``presentation``. Version 1 is read for ever, and written
wherever it says all that there is to say: older clients go on with models that need nothing new.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ctseg.documents import Document, canonical, told_by
from ctseg.errors import SpecError
from ctseg.presentation import LabelPresentation

SCHEMA_VERSION = 2
SPEC_NAME = "ctseg.json"
"""Name of a spec's file: in a bundle the FP32 network's, in a model repository the newest version's."""
MAX_SPEC_BYTES = 256 * 1024
"""Largest spec that travels in a Triton model's ``parameters``."""

Normalization = Literal[
    "CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"
]
Reader = Literal["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"]
DType = Literal["FP32", "FP16", "BF16"]
Precision = Literal["fp32", "fp16", "bf16"]
ParitySet = Literal["scans", "phantom"]
"""What a network is compared with PyTorch on: real scans, or a phantom that is made by a rule."""

_ADDED_IN_2 = ("previous_stage", "votes", "presentation")
"""Fields; version 1 had the first one too, as a mere name that no client could run."""
_NOT_IN_DIGEST = ("provenance", "parity", "presentation")

MAX_PREVIOUS_LABEL = 2**15 - 1
"""Largest value that nnU-Net's preprocessor keeps of a label map."""
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

_ITEM_BYTES: Mapping[DType, int] = {"FP32": 4, "FP16": 2, "BF16": 2}


class IntensityProperties(Document):
    """Foreground intensities of the training set, in the unit of the images (HU for CT)."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Channel(Document):
    """One input channel and how it is normalised."""

    name: str
    normalization: Normalization
    use_mask_for_norm: bool = False
    intensity: IntensityProperties


class SplineResampling(Document):
    """nnU-Net's default resampling: scikit-image's spline resize, slice-wise when anisotropic."""

    function: Literal["resample_data_or_seg_to_shape"] = "resample_data_or_seg_to_shape"
    order: Literal[0, 1, 3]
    order_z: Literal[0, 1, 3] = 0
    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: float = 3.0


class TorchResampling(Document):
    """nnU-Net's torch resampling: (bi-, tri-)linear without antialiasing."""

    function: Literal["resample_torch_fornnunet"] = "resample_torch_fornnunet"
    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: float = 3.0
    mode: Literal["linear", "nearest", "nearest-exact"] = "linear"
    aniso_axis_mode: Literal["nearest", "nearest-exact"] = "nearest-exact"


class NoResampling(Document):
    """nnU-Net's ``no_resampling_hack``: the grid stays as it is."""

    function: Literal["no_resampling_hack"] = "no_resampling_hack"


Resampling = Annotated[SplineResampling | TorchResampling | NoResampling, Field(discriminator="function")]


class SplineSegResampling(Document):
    """nnU-Net's default resampling of label maps, by batchgenerators: each label is resampled, one wins each voxel.

    Attributes:
        ties: ``argmax``: the highest share wins; among equal ones the label of the nearest voxel, else the smallest, as
            batchgenerators has it from 0.25.4 on.
    """

    function: Literal["resample_data_or_seg_to_shape"] = "resample_data_or_seg_to_shape"
    order: Literal[0, 1] = 1
    order_z: Literal[0] = 0
    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: float = 3.0
    ties: Literal["argmax"] = "argmax"


class TorchSegResampling(Document):
    """nnU-Net's torch resampling of label maps: shares in float16; the first over 0.7 wins, else the highest."""

    function: Literal["resample_torch_fornnunet"] = "resample_torch_fornnunet"
    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: float = 3.0
    mode: Literal["linear", "nearest", "nearest-exact"] = "linear"
    aniso_axis_mode: Literal["nearest", "nearest-exact"] = "nearest-exact"


SegResampling = Annotated[
    SplineSegResampling | TorchSegResampling | NoResampling,
    Field(discriminator="function"),
]


class PreviousStage(Document):
    """The first stage of a cascade, whose label map the second stage gets as further channels.

    Attributes:
        model: Name of the first stage in the Triton repository.
        digest: Of its spec.
        network_sha256: Of its network, whatever precision it is built in.
        labels: Values that become a channel each, 1 where the label map has the value and 0 elsewhere, in this order
            after the images' channels.
        resampling: From the grid of the scan to that of the second stage.
    """

    model: str = Field(pattern=MODEL_NAME_PATTERN, max_length=128)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    network_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    labels: tuple[int, ...] = Field(min_length=1)
    resampling: SegResampling

    @field_validator("labels")
    @classmethod
    def _are_foreground(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or list(value) != sorted(set(value)):
            raise ValueError(f"expected foreground values in ascending order, found {value}")
        if value[-1] > MAX_PREVIOUS_LABEL:
            raise ValueError(f"expected values of at most {MAX_PREVIOUS_LABEL}, found {value[-1]}")
        return value


class Votes(Document):
    """A further output of the network: for each head, how many folds give the voxel to it; UINT8.

    Attributes:
        name: Of the tensor.
        folds: How many there are.
    """

    name: str = "votes"
    folds: int = Field(ge=2, le=255)


class Label(Document):
    """A label (one value) or a region (several values that are segmented as one)."""

    name: str
    values: tuple[int, ...] = Field(min_length=1)


class KeepLargest(Document):
    """Keep the largest connected component of the union of ``labels``; the rest becomes background."""

    kind: Literal["keep_largest"] = "keep_largest"
    labels: tuple[int, ...] = Field(min_length=1)


class Tensor(Document):
    """A tensor of the served network."""

    name: str
    dtype: DType = "FP32"

    @property
    def item_bytes(self) -> int:
        """Bytes of one number on the wire."""
        return _ITEM_BYTES[self.dtype]


class Provenance(Document):
    """Where the network comes from; not part of the digest."""

    dataset: str = ""
    trainer: str = ""
    plans: str = ""
    folds: tuple[str, ...] = ()
    checkpoint: str = ""
    created: str = ""
    tools: dict[str, str] = Field(default={})


class Parity(Document):
    """What the parity gate found; not part of the digest."""

    state: Literal["proven", "unproven", "untested"] = "untested"
    proven_with: tuple[ParitySet, ...] = ()
    """On what this network gave PyTorch's labels; empty also where that was not written down yet."""
    graph_proven_with: tuple[ParitySet, ...] = ()
    """On what the exported graph did, that this network was built from."""
    relative_l2: float | None = None
    max_abs_error: float | None = None
    label_difference_share: float | None = None
    min_dice: float | None = None
    detail: str = ""

    @property
    def summary(self) -> str:
        """State and what proved it, for people: ``proven with phantom (its graph with scans and phantom)``."""
        if self.state != "proven" or not self.proven_with:
            return self.state
        with_what = f"proven with {' and '.join(self.proven_with)}"
        if self.graph_proven_with in ((), self.proven_with):
            return with_what
        return f"{with_what} (its graph with {' and '.join(self.graph_proven_with)})"


class ModelSpec(Document):
    """The contract between a trained network and whoever runs it.

    Spatial axes are those of nnU-Net after ``transpose_forward``; for a 2d configuration patch and
    spacing have two entries and slices are taken along the first axis.
    """

    schema_version: Literal[2] = 2
    name: str = Field(pattern=MODEL_NAME_PATTERN, max_length=128)
    configuration: str
    previous_stage: PreviousStage | None = None
    channels: tuple[Channel, ...] = Field(min_length=1)
    reader: Reader
    file_ending: str
    transpose_forward: tuple[int, int, int]
    spacing_mm: tuple[float, ...] = Field(min_length=2, max_length=3)
    patch_size: tuple[int, ...] = Field(min_length=2, max_length=3)
    resampling_data: Resampling
    resampling_logits: Resampling
    labels: tuple[Label, ...] = Field(min_length=1)
    regions_class_order: tuple[int, ...] | None = None
    ignore_label: int | None = None
    mirror_axes: tuple[int, ...] = ()
    mirroring: Literal["graph", "client", "none"]
    input: Tensor = Tensor(name="input")
    output: Tensor = Tensor(name="output")
    votes: Votes | None = None
    max_batch_size: int = Field(ge=1)
    precision: Precision = "fp32"
    network_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    postprocessing: tuple[KeepLargest, ...] = ()
    provenance: Provenance = Provenance()
    parity: Parity = Parity()
    presentation: Mapping[str, LabelPresentation] = Field(default={})
    """By the label's name; not part of the digest."""

    @field_validator("transpose_forward")
    @classmethod
    def _is_permutation(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if sorted(value) != [0, 1, 2]:
            raise ValueError(f"expected a permutation of 0, 1, 2, found {value}")
        return value

    @field_validator("spacing_mm", "patch_size")
    @classmethod
    def _is_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError(f"expected positive numbers, found {value}")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> "ModelSpec":
        if len(self.spacing_mm) != len(self.patch_size):
            raise ValueError(f"spacing_mm {self.spacing_mm} and patch_size {self.patch_size} differ in dimensions")
        if len(set(self.mirror_axes)) != len(self.mirror_axes) or any(
            not 0 <= axis < len(self.patch_size) for axis in self.mirror_axes
        ):
            raise ValueError(f"mirror_axes {self.mirror_axes} are not axes of the patch {self.patch_size}")
        if self.has_regions:
            self._check_regions()
        else:
            values = [label.values for label in self.labels]
            if values != [(i,) for i in range(len(values))]:
                raise ValueError(f"expected labels 0, 1, 2, … (background first), found {values}")
        written = self.written_values
        if self.ignore_label is not None and self.ignore_label in written:
            raise ValueError(f"ignore label {self.ignore_label} is also a label that is written")
        # nnU-Net names every label of the regions, also those that none of them writes
        known = {*written, *(value for label in self.labels for value in label.values)}
        for step in self.postprocessing:
            if unknown := set(step.labels) - known:
                raise ValueError(f"postprocessing names labels {sorted(unknown)}; the model has {sorted(known)}")
        if unnamed := set(self.presentation) - {label.name for label in self.labels}:
            raise ValueError(f"presentation names labels {sorted(unnamed)} that the model does not have")
        return self

    def _check_regions(self) -> None:
        order = self.regions_class_order
        if order is None or len(order) != len(self.labels):
            raise ValueError(f"{len(self.labels)} regions need as many regions_class_order values, found {order}")
        if any(value < 1 for value in order):
            raise ValueError(f"regions_class_order {order} writes the background or a negative value")

    @property
    def has_regions(self) -> bool:
        """Whether the heads are regions (sigmoid, may overlap) rather than labels (softmax)."""
        return self.regions_class_order is not None

    @property
    def num_heads(self) -> int:
        """Channels of the logits."""
        return len(self.labels)

    @property
    def num_input_channels(self) -> int:
        """Channels of a patch: those of the scan, and one for each label of the previous stage."""
        return len(self.channels) + (len(self.previous_stage.labels) if self.previous_stage else 0)

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch on the wire, all channels."""
        return self.num_input_channels * math.prod(self.patch_size) * self.input.item_bytes

    @property
    def logits_bytes(self) -> int:
        """Bytes of one patch's logits on the wire."""
        return self.num_heads * math.prod(self.patch_size) * self.output.item_bytes

    @property
    def votes_bytes(self) -> int:
        """Bytes of one patch's votes on the wire; 0 where there are none."""
        return self.num_heads * math.prod(self.patch_size) if self.votes else 0

    @property
    def written_values(self) -> tuple[int, ...]:
        """The value that each head writes into the label map."""
        if self.regions_class_order is not None:
            return self.regions_class_order
        return tuple(label.values[0] for label in self.labels)

    @property
    def named_values(self) -> dict[str, tuple[int, ...]]:
        """For each foreground label or region, the values in the label map that belong to it."""
        return {label.name: label.values for label in self.labels if label.values != (0,)}

    @property
    def is_2d(self) -> bool:
        """Whether the network sees slices rather than volumes."""
        return len(self.patch_size) == 2

    @property
    def transpose_backward(self) -> tuple[int, int, int]:
        """The permutation that undoes ``transpose_forward``."""
        forward = self.transpose_forward
        return (forward.index(0), forward.index(1), forward.index(2))

    def spacing_of_network(self, spacing_transposed_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the spacing that the network works at, for a case of the given transposed spacing.

        A 2d configuration keeps the case's own distance between slices.
        """
        if self.is_2d:
            return (spacing_transposed_mm[0], self.spacing_mm[0], self.spacing_mm[1])
        return (self.spacing_mm[0], self.spacing_mm[1], self.spacing_mm[2])

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what changes labels, in version 1's words as far as they go."""
        return hashlib.sha256(canonical(self._in_words_of_1(*_NOT_IN_DIGEST))).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON, of the oldest version that can say it: ASCII, keys sorted, no spaces."""
        if any(getattr(self, field) for field in _ADDED_IN_2):
            return canonical(self.model_dump(mode="json")).decode()
        return canonical(self._in_words_of_1()).decode()

    def _in_words_of_1(self, *exclude: str) -> dict[str, Any]:
        """Return the fields of version 1, and of the later ones those that say something."""
        later = {field for field in _ADDED_IN_2 if not getattr(self, field)}
        said = self.model_dump(mode="json", exclude={*exclude, *later})
        return {"previous_stage": None, "ensemble": [], **said, "schema_version": 1}

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str) -> "ModelSpec":
        """Parse and validate a spec.

        Args:
            text: JSON.
            source: Where it comes from, for the error message (a file, a server and model).

        Raises:
            SpecError: Too large, not JSON, another schema version, an unknown or missing field, or
                values that contradict each other; all problems are told at once.
        """
        if len(text) > MAX_SPEC_BYTES:
            raise SpecError(f"{source}: the spec has {len(text)} bytes, at most {MAX_SPEC_BYTES} are allowed")
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{source}: the spec is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise SpecError(f"{source}: expected a JSON object, found {type(raw).__name__}")
        return cls.validated({"schema_version": None, **raw}, source=source)

    @classmethod
    def validated(cls, raw: dict[str, Any], *, source: str) -> "ModelSpec":
        """Return a spec from plain data of any version, the newest by default.

        Raises:
            SpecError: With every problem.
        """
        version = raw.get("schema_version", SCHEMA_VERSION)
        if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
            raise SpecError(
                f"{source}: spec schema_version {version!r} is unknown, this ctseg reads up to {SCHEMA_VERSION}: "
                "use the ctseg that wrote it, or export the model again"
            )
        try:
            return cls.model_validate(_from_version_1(raw, source) if version == 1 else raw)
        except ValidationError as error:
            raise SpecError(f"{source}: {told_by(error, whole='spec')}") from error


def _from_version_1(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of a version 1 spec as version 2 has them."""
    if raw.get("previous_stage") or raw.get("ensemble"):
        raise SpecError(
            f"{source}: this spec of a cascade's second stage, or of an ensemble, does not say how to run it: export "
            "the model again"
        )
    fields = {key: value for key, value in raw.items() if key not in ("previous_stage", "ensemble")}
    if later := sorted(set(fields) & set(_ADDED_IN_2)):
        raise SpecError(f"{source}: {', '.join(later)}: not a field of schema_version 1")
    return {**fields, "schema_version": SCHEMA_VERSION}
