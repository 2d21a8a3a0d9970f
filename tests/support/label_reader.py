"""Networks whose labels stand in the scan already, so that a recipe can be fed with anybody's label maps, exactly."""

from collections.abc import Sequence

import numpy as np

from ctseg.arrays import Logits, Patches, Spacing
from ctseg.model_spec import Channel, IntensityProperties, Label, ModelSpec
from ctseg.predict.predictor import Identity
from tests.support.toy_models import toy_spec


class LabelReader:
    """Gives each voxel the label that one channel of the scan has there.

    Args:
        name: Of the model.
        channel: Of the scan; for a second stage None: the label that the first stage gave.
        heads: With background.
        channels: Of the scan, by name.
        spacing_mm: Of the scan, (z, y, x): nothing is resampled.
        transpose_forward: Of the plans.
        previous: The first stage, where this is the second one of a cascade.
    """

    max_in_flight = 2
    max_batch_size = 3

    def __init__(
        self,
        name: str,
        channel: int | None,
        *,
        heads: int,
        channels: Sequence[str],
        spacing_mm: Spacing,
        transpose_forward: tuple[int, int, int] = (0, 1, 2),
        previous: "LabelReader | None" = None,
    ) -> None:
        self._channel = channel
        self._images = len(channels)
        as_it_is = IntensityProperties(mean=0, std=1, percentile_00_5=-70_000, percentile_99_5=70_000)
        stage = None if previous is None else {
            "model": previous.spec.name,
            "digest": previous.spec.digest,
            "labels": list(range(1, previous.spec.num_heads)),
            "resampling": {"function": "resample_data_or_seg_to_shape"},
        }  # fmt: skip
        self.spec: ModelSpec = toy_spec(
            name,
            channels=tuple(
                Channel(name=channel, normalization="CTNormalization", intensity=as_it_is) for channel in channels
            ),
            transpose_forward=transpose_forward,
            spacing_mm=tuple(spacing_mm[axis] for axis in transpose_forward),
            labels=tuple(Label(name=f"l{i}" if i else "background", values=(i,)) for i in range(heads)),
            previous_stage=stage,
        )

    @property
    def identity(self) -> Identity:
        return Identity(self.spec.name, 1, self.spec.digest, (), "in process")

    def predict(self, patches: Patches) -> Logits:
        if self._channel is None:
            background = np.full_like(patches[:, :1], 0.5)
            return np.concatenate([background, patches[:, self._images :]], axis=1)
        values = np.arange(self.spec.num_heads, dtype=np.float32)[:, None, None, None]
        return -np.abs(patches[:, self._channel, None] - values)
