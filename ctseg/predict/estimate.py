"""How much memory a case will take, from the headers of its files."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np

from ctseg.arrays import Shape3, Spacing
from ctseg.files.volume import VolumeHeader
from ctseg.model_spec import Channel, ModelSpec, NoResampling, Resampling, SplineResampling
from ctseg.numerics.decide import values_of_indices
from ctseg.numerics.prepare import network_shape_of
from ctseg.numerics.resample import find_slice_axis, resampling_order
from ctseg.numerics.votes import num_channels
from ctseg.numerics.windows import count_windows

_FLOAT = 4
"""Bytes of a float32."""
_SMALL = 32 << 20
"""What is small: tables, threads' own buffers, and what the allocator does not give back at once."""
_FREED_LATE = 64 << 20
"""Of the windows' memory, what the allocator keeps for a while at most when they are through."""
_PREVIOUS = 2
"""Bytes a voxel of the previous stage's labels, as they are read and on the network's grid."""
_MASK = 6
"""Bytes a voxel of the non-zero region while its holes are filled."""
_DECISION = 11
"""Bytes a voxel while cubic logits are decided: one head, the best so far, its index, and where the head is better."""
_COMPONENTS = 8
"""Bytes a voxel while connected components are looked for: their numbers, and the groups."""


@dataclass(frozen=True)
class WindowLoad:
    """The windows of one case that are on their way to the network, or wait to be blended.

    Attributes:
        waiting: Most of them, those that are sent included.
        running: Most that the network works on at once.
        mirrored: Whether each is averaged over mirrored patches here.
        tile_step_size: Step between windows as a fraction of the patch.
        votes: Whether the votes of the folds come with the logits.
    """

    waiting: int
    running: int
    mirrored: bool
    tile_step_size: float
    votes: bool = False

    def shared(self, beside: int) -> "WindowLoad":
        """Return that of one of several networks in step; see :func:`ctseg.predict.segment.batches_ahead`."""
        waiting = max(1, self.waiting // (1 + beside))
        return replace(self, waiting=waiting, running=min(self.running, waiting))


@dataclass(frozen=True)
class MemoryEstimate:
    """What segmenting a case takes in this process.

    Attributes:
        peak_bytes: At most; without the pages of files that are written, which the machine takes back when it needs
            them.
        network_shape: Voxels along (z, y, x), transposed as the network has them, that the whole scan would have.
        network_spacing_mm: Along the same axes, in millimetres.
    """

    peak_bytes: int
    network_shape: Shape3
    network_spacing_mm: Spacing

    def __str__(self) -> str:
        sides = " x ".join(map(str, self.network_shape))
        spacing_mm = " x ".join(f"{side:g}" for side in self.network_spacing_mm)
        return f"{gigabytes(self.peak_bytes)}: {sides} voxels (z, y, x) at the network's spacing of {spacing_mm} mm"


def gigabytes(size: int) -> str:
    """Return bytes in words."""
    value = size / (1 << 30)
    return f"{value:.3g} GB" if value < 1000 else f"{value:,.0f} GB"


def estimate_memory(
    header: VolumeHeader, spec: ModelSpec, load: WindowLoad, *, saves_probabilities: bool = False
) -> MemoryEstimate:
    """Estimate the memory that segmenting a case takes, by windows that are cut here.

    The stages of :func:`ctseg.predict.segment.segment` hold different arrays; the largest sum counts. What lies
    outside the crop is not known before the voxels are read: the whole scan counts as inside.

    Args:
        header: What the files say.
        spec: The network's contract.
        load: How its windows are run.
        saves_probabilities: Whether probabilities are written.

    Raises:
        InputError: The scan would have no voxel at the network's spacing.
    """
    grids = _Grids.of(header, spec)
    prepared = _FLOAT * len(spec.channels) * prod(grids.network_shape)
    labels = values_of_indices(spec).itemsize * prod(grids.shape)
    whole = 0 if _is_linear(grids, spec.resampling_logits) else _FLOAT * spec.num_heads * prod(grids.network_shape)
    plane = _FLOAT * spec.num_heads * prod(grids.shape[1:]) if saves_probabilities else 0
    on_their_way = _on_their_way(grids, spec, load)
    at_the_end = labels + whole + plane
    if whole:
        deciding = _deciding(grids, spec, saves_probabilities=saves_probabilities)
        at_the_end += deciding + min(on_their_way, _FREED_LATE)
    stages = (
        preparing_bytes(header, spec),
        prepared + _preparing_previous(grids, spec),
        prepared + labels + whole + plane + _blending(grids, spec, load) + on_their_way,
        at_the_end,
        labels + (2 * labels + _COMPONENTS * prod(grids.shape) if spec.postprocessing else 0),
    )
    peak_bytes = _SMALL + max(header.reading_bytes, header.voxel_bytes + _previous(grids, spec) + max(stages))
    return MemoryEstimate(peak_bytes, grids.network_shape, grids.network_spacing_mm)


def most_windows(header: VolumeHeader, spec: ModelSpec, tile_step_size: float) -> int:
    """Return how many windows a scan has if nothing of it is cropped.

    Raises:
        InputError: It would have no voxel at the network's spacing.
    """
    return count_windows(_Grids.of(header, spec).network_shape, spec.patch_size, tile_step_size)


def estimate_sending(header: VolumeHeader, spec: ModelSpec, sending_bytes: int) -> MemoryEstimate:
    """Estimate the memory that a case takes here whose whole scan is sent to a server.

    Args:
        header: What the files say.
        spec: Of a network that sees the scan.
        sending_bytes: What sending it and receiving its label map takes.

    Raises:
        InputError: The scan would have no voxel at the network's spacing.
    """
    grids = _Grids.of(header, spec)
    previous = _PREVIOUS * prod(grids.shape) if spec.previous_stage else 0
    peak_bytes = _SMALL + max(header.reading_bytes, header.voxel_bytes + previous + sending_bytes)
    return MemoryEstimate(peak_bytes, grids.network_shape, grids.network_spacing_mm)


def with_writing(
    estimate: MemoryEstimate, header: VolumeHeader, label_bytes: int, writing_bytes: int
) -> MemoryEstimate:
    """Return an estimate that holds what is taken while the files of a case are written, too.

    Args:
        estimate: Without it.
        header: What the scan's files say.
        label_bytes: Of a voxel of the label map.
        writing_bytes: What the writers take beside scan and label map.
    """
    labels = label_bytes * prod(header.geometry.shape)
    return replace(estimate, peak_bytes=max(estimate.peak_bytes, _SMALL + header.voxel_bytes + labels + writing_bytes))


def preparing_bytes(header: VolumeHeader, spec: ModelSpec) -> int:
    """Return what is held while a scan is prepared, beside the scan itself.

    Raises:
        InputError: It would have no voxel at the network's spacing.
    """
    grids = _Grids.of(header, spec)
    return max(_preparing(header, grids, channel, spec) for channel in spec.channels)


def prepared_bytes(header: VolumeHeader, spec: ModelSpec) -> int:
    """Return what a scan takes once it is prepared.

    Raises:
        InputError: It would have no voxel at the network's spacing.
    """
    return _FLOAT * len(spec.channels) * prod(_Grids.of(header, spec).network_shape)


def network_run_bytes(header: VolumeHeader, spec: ModelSpec, load: WindowLoad) -> int:
    """Return what one network's run over a scan takes beside its label map: the prepared scan, windows, and slabs.

    Raises:
        InputError: The scan would have no voxel at the network's spacing.
    """
    grids = _Grids.of(header, spec)
    held = prepared_bytes(header, spec) + _previous(grids, spec)
    return held + _blending(grids, spec, load) + _on_their_way(grids, spec, load)


def is_restored_by_planes(header: VolumeHeader, spec: ModelSpec) -> bool:
    """Whether logits come back to the grid of the scan slab by slab, rather than as a whole volume.

    Raises:
        InputError: The scan would have no voxel at the network's spacing.
    """
    return _is_linear(_Grids.of(header, spec), spec.resampling_logits)


@dataclass(frozen=True)
class _Grids:
    """The grids of a case along the transposed axes: as read, and at the network's spacing."""

    shape: Shape3
    spacing_mm: Spacing
    network_shape: Shape3
    network_spacing_mm: Spacing

    @classmethod
    def of(cls, header: VolumeHeader, spec: ModelSpec) -> "_Grids":
        z, y, x = spec.transpose_forward
        sides, spacings = header.geometry.shape, header.spacing_mm
        shape, spacing_mm = (sides[z], sides[y], sides[x]), (spacings[z], spacings[y], spacings[x])
        network_shape = network_shape_of(shape, spacing_mm, spec)
        return cls(shape, spacing_mm, network_shape, spec.spacing_of_network(spacing_mm))


def _previous(grids: _Grids, spec: ModelSpec) -> int:
    """Return what the previous stage's labels take: those of the scan, and those that the network sees."""
    return _PREVIOUS * (prod(grids.shape) + prod(grids.network_shape)) if spec.previous_stage else 0


def _preparing_previous(grids: _Grids, spec: ModelSpec) -> int:
    """Return what is held beside both while the labels are cut and resampled: a copy, and the non-zero region."""
    return (_PREVIOUS + _MASK) * prod(grids.shape) if spec.previous_stage else 0


def _preparing(header: VolumeHeader, grids: _Grids, channel: Channel, spec: ModelSpec) -> int:
    """Return what is held while the last channel is normalised as this one is, and then resampled."""
    voxels = prod(grids.shape)
    others = _FLOAT * (len(spec.channels) - 1) * prod(grids.network_shape)
    work = mask = hole_filling = 0
    if channel.normalization == "ZScoreNormalization":
        is_copied = header.dtype != np.float32 or any(header.grid.reorientation.flipped)
        work = _FLOAT * voxels + (_FLOAT * voxels if is_copied else 0)
        if channel.use_mask_for_norm:
            mask, hole_filling, work = voxels, _MASK * voxels, work + 2 * _FLOAT * voxels
    slice_axis = _slice_axis(grids, spec.resampling_data)
    sizes, current = [voxels], list(grids.shape)
    for axis in resampling_order(grids.shape, grids.network_shape, slice_axis):
        current[axis] = grids.network_shape[axis]
        sizes.append(prod(current))
    resampling = _FLOAT * max([voxels, *(before + after for before, after in pairwise(sizes))])
    return others + max(hole_filling, mask + _FLOAT * voxels + work, mask + resampling)


def _slice_axis(grids: _Grids, resampling: Resampling) -> int | None:
    if isinstance(resampling, NoResampling):
        return None
    return find_slice_axis(
        resampling.force_separate_z,
        resampling.separate_z_anisotropy_threshold,
        grids.spacing_mm,
        grids.network_spacing_mm,
    )


def _is_linear(grids: _Grids, resampling: Resampling) -> bool:
    """Whether logits are restored slab by slab; see ``ResamplingPlan.is_linear``."""
    if not isinstance(resampling, SplineResampling):
        return True
    across = _slice_axis(
        _Grids(grids.network_shape, grids.network_spacing_mm, grids.shape, grids.spacing_mm), resampling
    )
    changed = resampling_order(grids.network_shape, grids.shape, across)
    return all((resampling.order_z if axis == across else resampling.order) <= 1 for axis in changed)


def _blending(grids: _Grids, spec: ModelSpec, load: WindowLoad) -> int:
    """Return what the blender's ring takes, and the plane that the restorer keeps of it."""
    depth, *patch = (1, *spec.patch_size)[-3:]
    rows, columns = (max(size, side) for size, side in zip(grids.network_shape[1:], patch, strict=True))
    ring = num_channels(spec, votes=load.votes) * depth * rows * columns
    return _FLOAT * (ring + spec.num_heads * prod(grids.network_shape[1:]))


def _on_their_way(grids: _Grids, spec: ModelSpec, load: WindowLoad) -> int:
    """Return what the windows take that are sent, answered, or wait for either."""
    counts = (spec.num_input_channels, num_channels(spec, votes=load.votes))
    patch, logits = (_FLOAT * count * prod(spec.patch_size) for count in counts)
    waiting = min(load.waiting, count_windows(grids.network_shape, spec.patch_size, load.tile_step_size))
    running = min(load.running, waiting)
    mirroring = running * (patch + logits) if load.mirrored else 0
    coming = running * (spec.logits_bytes + spec.votes_bytes) if load.votes else 0  # until they lie behind each other
    return waiting * (patch + logits) + mirroring + coming


def _deciding(grids: _Grids, spec: ModelSpec, *, saves_probabilities: bool) -> int:
    """Return what is held beside the whole volume of logits while they are resampled head by head."""
    voxels = prod(grids.shape)
    kept = _FLOAT * spec.num_heads * voxels if saves_probabilities else 0
    return kept + _DECISION * voxels
