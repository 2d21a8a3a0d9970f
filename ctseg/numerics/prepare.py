"""From voxels as read to what the network sees: transpose, crop, normalise, resample; and the record that undoes it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_fill_holes

from ctseg.arrays import LabelMap, Shape3, Spacing
from ctseg.compiled.parallel import run_parallel
from ctseg.errors import InputError
from ctseg.model_spec import Channel, ModelSpec, NoResampling
from ctseg.numerics.resample import compute_new_shape, plan_resampling, resample
from ctseg.numerics.resample_labels import resample_labels

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open ranges along three axes."""

_OUTSIDE = -1
"""The label that nnU-Net gives to what lies outside of the non-zero region."""
_SMALLEST_DIVISOR = 1e-8
"""What nnU-Net divides by at least, in float32."""


@dataclass(frozen=True)
class PreparationRecord:
    """What was done to a case's geometry, in the order in which it was done.

    Attributes:
        shape: (z, y, x) as read.
        transpose_forward: Permutation of the spatial axes that came first; everything below is transposed.
        crop: The box that holds all non-zero voxels.
        spacing_mm: Along the transposed axes, in millimetres, as read.
        network_spacing_mm: What the network works at.
        network_shape: Of the prepared volume.
    """

    shape: Shape3
    transpose_forward: tuple[int, int, int]
    crop: Box
    spacing_mm: Spacing
    network_spacing_mm: Spacing
    network_shape: Shape3

    @property
    def transposed_shape(self) -> Shape3:
        """Shape after the transposition, before cropping."""
        return _permuted(self.shape, self.transpose_forward)

    @property
    def cropped_shape(self) -> Shape3:
        """Shape after cropping, before resampling."""
        (z0, z1), (y0, y1), (x0, x1) = self.crop
        return (z1 - z0, y1 - y0, x1 - x0)

    @property
    def crop_slices(self) -> tuple[slice, slice, slice]:
        """The crop as slices of the transposed axes."""
        (z0, z1), (y0, y1), (x0, x1) = self.crop
        return (slice(z0, z1), slice(y0, y1), slice(x0, x1))

    @property
    def crop_as_read(self) -> tuple[slice, slice, slice]:
        """The crop as slices of the axes as read."""
        forward, box = self.transpose_forward, self.crop_slices
        return (box[forward.index(0)], box[forward.index(1)], box[forward.index(2)])


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as the network sees it.

    Attributes:
        voxels: (channels, z, y, x), transposed axes, normalised, float32, C-contiguous.
        record: How to come back.
        previous: (z, y, x), int16: labels of the previous stage on the same grid, -1 outside the non-zero region. The
            network sees a channel for each value that its spec names.
    """

    voxels: npt.NDArray[np.float32]
    record: PreparationRecord
    previous: npt.NDArray[np.int16] | None = None


def prepare(
    voxels: npt.NDArray[Any], spacing_mm: Spacing, spec: ModelSpec, *, previous: LabelMap | None = None
) -> Prepared:
    """Prepare a case as nnU-Net's ``DefaultPreprocessor`` does, with its order and its rounding.

    A volume that is zero everywhere is not cropped, as in nnU-Net.

    Args:
        voxels: (channels, z, y, x) as the plans' reader yields them, any integer or float dtype (integers stay
            integers until they are normalised), any strides; not changed. Finite, which a ``Volume`` has made
            sure of: it is not looked at again. Z-score means are those of NumPy in float32, whose rounding
            depends on the order in memory.
        spacing_mm: Distance between voxel centres along (z, y, x) as read, in millimetres.
        spec: The network's contract.
        previous: (z, y, x) as read: the label map of the previous stage, where the network is a second one.

    Returns:
        The prepared case; its voxels share no memory with ``voxels``.

    Raises:
        InputError: The label map of the previous stage is missing, or has another shape or values that the network
            does not know; or the scan has no voxels, other channels than the network, a spacing that is not positive,
            intensities that the normalisation cannot take, or too few voxels for the network's spacing. The message
            does not name the case.
        ValueError: ``voxels`` has not four axes, or a dtype that is no real number; or there is a ``previous`` though
            the network has no previous stage.

    Source:
        nnU-Net 2.8's ``DefaultPreprocessor.run_case_npy``.
    """
    _check_previous(previous, voxels.shape[1:], spec)
    outside_mask = None if previous is None or not _uses_mask(spec) else previous != 0
    prepared = prepare_images(voxels, spacing_mm, spec, counts_as_inside=outside_mask)
    return prepared if previous is None else with_previous(prepared, voxels, previous, spec)


def prepare_images(
    voxels: npt.NDArray[Any],
    spacing_mm: Spacing,
    spec: ModelSpec,
    *,
    counts_as_inside: npt.NDArray[np.bool_] | None = None,
) -> Prepared:
    """Prepare the images of a case; see :func:`prepare`.

    Args:
        voxels: As there.
        spacing_mm: As there.
        spec: As there; its previous stage is not looked at.
        counts_as_inside: (z, y, x) as read: voxels that belong to the non-zero region besides, for normalisation.
    """
    _check(voxels, spacing_mm, spec)
    transposed = _transposed(voxels, spec.transpose_forward)
    spacing = _permuted(spacing_mm, spec.transpose_forward)
    crop = find_nonzero_box(transposed)
    z, y, x = (slice(*bounds) for bounds in crop)
    cropped = transposed[:, z, y, x]  # a view, as nnU-Net's: the rounding of means depends on it
    cropped_shape: Shape3 = (cropped.shape[1], cropped.shape[2], cropped.shape[3])
    network_spacing = spec.spacing_of_network(spacing)
    network_shape = network_shape_of(cropped_shape, spacing, spec)
    plan = plan_resampling(spec.resampling_data, cropped_shape, network_shape, spacing, network_spacing)
    prepared = np.empty((len(voxels), *plan.target_shape), dtype=np.float32)
    inside = None
    if _uses_mask(spec):
        inside = _nonzero_mask(transposed)[z, y, x]
        if counts_as_inside is not None:
            inside = inside | counts_as_inside.transpose(spec.transpose_forward)[z, y, x]
    for index, channel in enumerate(spec.channels):
        if plan.is_identity:
            normalise(cropped[index], channel, inside=inside, out=prepared[index])
        else:
            resample(normalise(cropped[index], channel, inside=inside), plan, out=prepared[index])
    record = PreparationRecord(
        shape=(voxels.shape[1], voxels.shape[2], voxels.shape[3]),
        transpose_forward=spec.transpose_forward,
        crop=crop,
        spacing_mm=spacing,
        network_spacing_mm=network_spacing,
        network_shape=network_shape,
    )
    return Prepared(prepared, record)


def with_previous(images: Prepared, voxels: npt.NDArray[Any], previous: LabelMap, spec: ModelSpec) -> Prepared:
    """Return prepared images with the labels of the previous stage.

    Args:
        images: What :func:`prepare_images` returned.
        voxels: (channels, z, y, x) that it was given.
        previous: See :func:`prepare`.
        spec: The network's contract.

    Raises:
        InputError: See :func:`prepare`.
        ValueError: The network has no previous stage.
    """
    _check_previous(previous, voxels.shape[1:], spec)
    stage, record = spec.previous_stage, images.record
    if stage is None:
        raise ValueError(f"{spec.name}: expected a network with a previous stage, found one without")
    where = record.crop_slices
    labels = previous.transpose(record.transpose_forward)[where].astype(np.int16)
    inside = _nonzero_mask(_transposed(voxels, record.transpose_forward))[where]
    labels[(labels == 0) & ~inside] = _OUTSIDE
    shape = (images.voxels.shape[1], images.voxels.shape[2], images.voxels.shape[3])
    resampled = resample_labels(labels, stage.resampling, shape, record.spacing_mm, record.network_spacing_mm)
    return replace(images, previous=np.ascontiguousarray(resampled))


def network_shape_of(cropped_shape: Shape3, spacing_mm: Spacing, spec: ModelSpec) -> Shape3:
    """Return how many voxels the network sees along each axis.

    Args:
        cropped_shape: Voxels along the transposed axes, after cropping.
        spacing_mm: Along the same axes, in millimetres, as read.
        spec: The network's contract.

    Raises:
        InputError: An axis would be left with no voxel.
    """
    if isinstance(spec.resampling_data, NoResampling):
        return cropped_shape
    return compute_new_shape(cropped_shape, spacing_mm, spec.spacing_of_network(spacing_mm))


def find_nonzero_box(voxels: npt.NDArray[Any]) -> Box:
    """Return the smallest box that holds every voxel that is non-zero in some channel; all of a volume of zeros.

    Filling the holes of the mask, as nnU-Net does, does not change its box.

    Args:
        voxels: (channels, z, y, x), any real dtype.

    Source:
        nnU-Net's ``crop_to_nonzero``, which looks at the voxels as float32.
    """
    box: list[tuple[int, int]] = [(0, size) for size in voxels.shape[1:]]
    for axis in range(3):
        z, y, x = (slice(*bounds) for bounds in box)
        inside = voxels[:, z, y, x]
        planes = np.moveaxis(inside, axis + 1, 0)
        begin = next((i for i in range(len(planes)) if _any_nonzero(planes[i])), None)
        if begin is None:
            return ((0, voxels.shape[1]), (0, voxels.shape[2]), (0, voxels.shape[3]))
        end = next(i for i in range(len(planes), 0, -1) if _any_nonzero(planes[i - 1]))
        box[axis] = (begin, end)
    return (box[0], box[1], box[2])


def normalise(
    voxels: npt.NDArray[Any],
    channel: Channel,
    *,
    inside: npt.NDArray[np.bool_] | None = None,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Normalise one channel.

    Args:
        voxels: (z, y, x), any real dtype, any strides; not changed.
        channel: Which scheme, and its numbers.
        inside: The non-zero region with its holes, needed when the scheme uses it.
        out: Where to put the result, float32; a new array when None.

    Returns:
        (z, y, x), float32, C-contiguous when new.

    Raises:
        InputError: ``RGBTo01Normalization`` found voxels below 0 or above 255.

    Source:
        nnU-Net's normalisation schemes; every operation rounds to float32, as there.
    """
    if out is None:
        out = np.empty(voxels.shape, dtype=np.float32)
    scheme = channel.normalization
    if scheme == "CTNormalization":
        low, high = channel.intensity.percentile_00_5, channel.intensity.percentile_99_5
        mean, std = channel.intensity.mean, max(channel.intensity.std, _SMALLEST_DIVISOR)

        def normalise_ct(plane: npt.NDArray[np.float32]) -> None:
            np.clip(plane, low, high, out=plane)
            plane -= mean
            plane /= std

        _map_planes(voxels, out, normalise_ct)
    elif scheme == "ZScoreNormalization":
        _normalise_z_score(voxels, channel, inside, out)
    elif scheme == "RescaleTo01Normalization":
        lowest, highest = np.float32(voxels.min()), np.float32(voxels.max())
        span = max(highest - lowest, np.float32(_SMALLEST_DIVISOR))

        def rescale(plane: npt.NDArray[np.float32]) -> None:
            plane -= lowest
            plane /= span

        _map_planes(voxels, out, rescale)
    elif scheme == "RGBTo01Normalization":
        lowest, highest = np.float32(voxels.min()), np.float32(voxels.max())
        if lowest < 0 or highest > 255:
            raise InputError(
                f"channel {channel.name}: expected intensities from 0 to 255 for RGBTo01Normalization, found "
                f"{lowest:g} to {highest:g}: this model takes 8-bit colour images"
            )

        def divide(plane: npt.NDArray[np.float32]) -> None:
            plane /= 255.0

        _map_planes(voxels, out, divide)
    else:
        _map_planes(voxels, out, None)
    return out


def _normalise_z_score(
    voxels: npt.NDArray[Any],
    channel: Channel,
    inside: npt.NDArray[np.bool_] | None,
    out: npt.NDArray[np.float32],
) -> None:
    source = _as_float32(voxels)
    if not _needs_mask(channel):
        mean, std = source.mean(), source.std()
        divisor = max(std, _SMALLEST_DIVISOR)

        def standardise(plane: npt.NDArray[np.float32]) -> None:
            plane -= mean
            plane /= divisor

        _map_planes(source, out, standardise)
        return
    if inside is None:
        raise ValueError(f"channel {channel.name}: expected the non-zero region, which its normalisation uses")
    out[...] = source
    values = source[inside]
    if len(values):
        out[inside] = (values - values.mean()) / max(values.std(), _SMALLEST_DIVISOR)


def _as_float32(voxels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return (z, y, x) as float32, laid out in memory as nnU-Net has them, which copies the whole scan to float32.

    NumPy's sums round by the order of the axes in memory, and by which of them follow one another without a gap.
    """
    if voxels.dtype == np.float32 and min(voxels.strides) >= 0:
        return voxels
    axes = sorted(range(3), key=lambda axis: -abs(voxels.strides[axis]))
    sizes = [voxels.shape[axis] for axis in axes]
    steps = [abs(voxels.strides[axis]) for axis in axes]
    gaps = [0, *(steps[i] != sizes[i + 1] * steps[i + 1] for i in (0, 1))]
    stored = np.empty([size + gap for size, gap in zip(sizes, gaps, strict=True)], np.float32)
    turned: npt.NDArray[np.float32] = stored[tuple(map(slice, sizes))].transpose(np.argsort(axes))
    turned[...] = voxels
    return turned


def _map_planes(
    voxels: npt.NDArray[Any],
    out: npt.NDArray[np.float32],
    change: Callable[[npt.NDArray[np.float32]], None] | None,
) -> None:
    """Copy plane by plane into float32 and change each plane in place, on threads, while it is in the cache."""

    def work(first: int, last: int) -> None:
        for z in range(first, last):
            np.copyto(out[z], voxels[z], casting="unsafe")
            if change is not None:
                change(out[z])

    run_parallel(work, len(out))


def _check(voxels: npt.NDArray[Any], spacing_mm: Spacing, spec: ModelSpec) -> None:
    if voxels.ndim != 4:
        raise ValueError(f"expected voxels with axes (channels, z, y, x), found shape {voxels.shape}")
    if voxels.dtype.kind not in "biuf":
        raise ValueError(f"expected integer or float voxels, found {voxels.dtype}")
    if len(voxels) != len(spec.channels):
        names = ", ".join(channel.name for channel in spec.channels)
        raise InputError(f"expected {len(spec.channels)} channels ({names}), found {len(voxels)}")
    if voxels.size == 0:
        raise InputError(f"expected a volume, found shape {voxels.shape[1:]}: the scan has no voxels")
    if not all(np.isfinite(spacing) and spacing > 0 for spacing in spacing_mm):
        raise InputError(f"expected a positive spacing along each axis, found {tuple(spacing_mm)} mm")


def _check_previous(previous: LabelMap | None, shape: tuple[int, ...], spec: ModelSpec) -> None:
    stage = spec.previous_stage
    if stage is None:
        if previous is not None:
            raise ValueError(f"{spec.name}: expected no labels of a previous stage, which the network does not have")
        return
    if previous is None:
        raise InputError(
            f"{spec.name} is the second stage of a cascade and needs the labels of {stage.model}: use the recipe of "
            "both, or give the first stage's label maps"
        )
    if previous.shape != shape:
        raise InputError(f"expected labels of {stage.model} on the scan's grid, {shape}, found {previous.shape}")
    found = np.unique(previous)
    if unknown := sorted({int(value) for value in found} - {0, *stage.labels}):
        raise InputError(
            f"expected labels {list(stage.labels)} of {stage.model}, found {unknown[:10]} too: is this the label map "
            "of that model?"
        )


def _transposed(voxels: npt.NDArray[Any], forward: tuple[int, int, int]) -> npt.NDArray[Any]:
    transposed: npt.NDArray[Any] = voxels.transpose(0, *(axis + 1 for axis in forward))
    return transposed


def _uses_mask(spec: ModelSpec) -> bool:
    return any(_needs_mask(channel) for channel in spec.channels)


def _needs_mask(channel: Channel) -> bool:
    return channel.use_mask_for_norm and channel.normalization == "ZScoreNormalization"


def _nonzero_mask(voxels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(voxels.shape[1:], dtype=bool)
    for volume in voxels:
        mask |= _as_seen(volume) != 0
    if mask.all():  # CT has hardly a voxel of 0 HU: nothing to fill
        return mask
    filled: npt.NDArray[np.bool_] = binary_fill_holes(mask)
    return filled


def _any_nonzero(voxels: npt.NDArray[Any]) -> bool:
    return bool(_as_seen(voxels).any())


def _as_seen(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Voxels in which zeros are what float32 takes for zero (tiny float64 numbers are)."""
    return voxels.astype(np.float32) if voxels.dtype.kind == "f" and voxels.dtype.itemsize > 4 else voxels


def _permuted(values: tuple[Any, Any, Any], order: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    return (values[order[0]], values[order[1]], values[order[2]])
