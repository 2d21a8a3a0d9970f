"""A phantom to prove networks with where no patient's voxels may go: a body of ellipsoids, made by a rule.

It looks to a network enough like what it was trained on to bring its activations into their usual range, and most
of its labels out. Intensities are those of the training's foreground, which the spec holds; nothing else of any scan
enters it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from ctseg.arrays import Shape3
from ctseg.deploy.parity_data import Array, PreparedCase
from ctseg.files.volume import Volume, volume_from_array
from ctseg.model_spec import Channel, IntensityProperties, ModelSpec
from ctseg.numerics.prepare import normalise

PHANTOM_SOURCE = "a phantom (ellipsoids and noise, no patient; its labels count where PyTorch decides them clearly)"

_SEED = 0
_SLICES = 4
"""Of a 2d configuration's phantom."""
_LONGER = 1.5
"""The phantom over the patch along the first axis of the patch: windows are joined, and the phantom stays small."""
_ORGANS = 14
_DEVIATIONS = (-1.5, -0.5, 0.5, 1.0, 2.0, 4.0, 0.3)
"""Mean intensity of an organ, in standard deviations from the mean of the training's foreground."""
_SKIN_DEVIATION = -1.0
_TEXTURE, _NOISE = 0.25, 0.15
"""Standard deviations of smooth texture and of noise, over that of the training's foreground."""
_TEXTURE_VOXELS = 2.0


@dataclass(frozen=True)
class _Ellipsoid:
    """A body with a soft edge; lengths in half sides of the volume, along (z, y, x).

    Attributes:
        centre: From the middle of the volume.
        radii: Half axes.
        edge: Width of the edge over the radius.
        deviation: Of its intensity, in standard deviations of the training's foreground.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    edge: float
    deviation: float

    def share(self, shape: Shape3) -> npt.NDArray[np.float64]:
        """Return how much of each voxel it fills, from 0 to 1."""
        axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij", sparse=True)
        squares = sum(
            ((axis - centre) / radius) ** 2 for axis, centre, radius in zip(axes, self.centre, self.radii, strict=True)
        )
        share: npt.NDArray[np.float64] = (1 + np.tanh((1 - np.sqrt(squares)) / (2 * self.edge))) / 2
        return share


def phantom_case(spec: ModelSpec) -> PreparedCase:
    """Return the phantom of a network, as the network sees it: one and a half patches.

    Args:
        spec: The network's contract; its patch and the foreground intensities of its channels are used.
    """
    size = _size_for(spec)
    generator = np.random.default_rng(_SEED)
    body = tuple(_body(generator))
    inside = body[0].share(size) > 0.5
    channels = [
        normalise(_channel(channel, index, body, size, generator), channel, inside=inside)
        for index, channel in enumerate(spec.channels)
    ]
    if spec.previous_stage is not None:
        channels += _label_channels(len(spec.previous_stage.labels), body, size)
    return PreparedCase("phantom", np.stack(channels))


def phantom_volume(spec: ModelSpec) -> Volume:
    """Return the phantom as a scan, on a network's grid and in the unit of its images.

    Args:
        spec: The network's contract.
    """
    size = _size_for(spec)
    generator = np.random.default_rng(_SEED)
    body = tuple(_body(generator))
    channels = [_channel(channel, index, body, size, generator) for index, channel in enumerate(spec.channels)]
    spacing_mm = spec.spacing_of_network((spec.spacing_mm[0], spec.spacing_mm[0], spec.spacing_mm[0]))
    backward = spec.transpose_backward
    z, y, x = (spacing_mm[axis] for axis in backward)
    voxels = np.stack(channels).transpose(0, *(axis + 1 for axis in backward))
    return volume_from_array(np.ascontiguousarray(voxels), np.diag([x, y, z, 1.0]), spec.reader)


def _size_for(spec: ModelSpec) -> Shape3:
    """Return how many voxels the phantom has along each axis of the network."""
    longer, *rest = spec.patch_size
    shape = (math.ceil(_LONGER * longer), *rest)
    return (_SLICES, shape[0], shape[1]) if spec.is_2d else (shape[0], shape[1], shape[2])


def _body(generator: np.random.Generator) -> Iterator[_Ellipsoid]:
    """A trunk that goes on at both ends of the first axis, with a skin, and organs that overlap in it."""
    yield _Ellipsoid((0, 0, 0), (2.5, 0.92, 0.85), 0.02, _SKIN_DEVIATION)
    yield _Ellipsoid((0, 0, 0), (2.5, 0.8, 0.7), 0.03, 0.0)
    for i in range(_ORGANS):
        z, y, x = generator.uniform((-0.9, -0.6, -0.6), (0.9, 0.6, 0.6))
        a, b, c = generator.uniform(0.12, 0.4, 3)
        yield _Ellipsoid((z, y, x), (a, b, c), 0.06, _DEVIATIONS[i % len(_DEVIATIONS)])


def _channel(
    channel: Channel, index: int, body: tuple[_Ellipsoid, ...], size: Shape3, generator: np.random.Generator
) -> Array:
    """Return one channel as it would be read; in each the organs have other intensities."""
    known = channel.intensity
    spread = known.std or 1.0
    low, high = _range_of(known, spread)
    trunk, organs = body[:2], body[2:]
    voxels = np.full(size, low - spread)
    for i, ellipsoid in enumerate((*trunk, *organs)):
        source = organs[(i + index) % len(organs)] if i >= len(trunk) else ellipsoid
        share = ellipsoid.share(size)
        voxels += share * (np.clip(known.mean + source.deviation * spread, low, high) - voxels)
    texture = gaussian_filter(generator.standard_normal(size), _TEXTURE_VOXELS)
    voxels += spread * (_TEXTURE * texture / texture.std() + _NOISE * generator.standard_normal(size))
    inside = body[0].share(size) > 0.5
    if channel.use_mask_for_norm:
        voxels[~inside] = 0
    if channel.normalization == "RGBTo01Normalization":
        voxels = np.clip(voxels, 0, 255)
    return voxels.astype(np.float32)


def _label_channels(count: int, body: tuple[_Ellipsoid, ...], size: Shape3) -> list[Array]:
    """Return what a previous stage may have found: organs, each of one label, as zeros and ones."""
    labels = np.zeros(size, dtype=np.int64)
    for i, organ in enumerate(body[2:]):
        labels[organ.share(size) > 0.5] = 1 + i % count
    return [(labels == value).astype(np.float32) for value in range(1, count + 1)]


def _range_of(known: IntensityProperties, spread: float) -> tuple[float, float]:
    """Return the intensities between which the body lies; wide enough to differ, whatever was written down."""
    low, high = known.percentile_00_5, known.percentile_99_5
    return (low, high) if high > low else (known.mean - 2 * spread, known.mean + 2 * spread)
