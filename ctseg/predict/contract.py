"""What a segmenter takes and gives, as far as those need to know who hand it scans and keep its label maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctseg.model_spec import IntensityProperties, ModelSpec, Reader
from ctseg.presentation import LabelPresentation


@dataclass(frozen=True)
class ScanContract:
    """Of one model, or of several that work together.

    Attributes:
        name: Of the model or the recipe.
        digest: Of its spec or of the recipe.
        channels: Names of the images of a scan, in order.
        reader: By which they are read.
        file_ending: Of label maps.
        labels: For each foreground label or region, the values in the label map that belong to it.
        parity: Whether it is proven to give the labels of its checkpoints: the state that the parity gate wrote.
        has_probabilities: Whether there are any to write: labels that several models contribute have none.
        previous_stage: Name of the model whose labels it has to be given; empty: it needs none.
        mirrors_in_graph: Whether test-time mirroring happens inside a network, where no client can leave it out.
        no_agreement: Why nothing can be said about the agreement of folds; empty where something can.
        presentation: How people and other systems call the labels, of those that the spec or the recipe says it of.
        ct_intensities: Of the training set, by the index of each channel that is normalised as CT: expected to be HU.
    """

    name: str
    digest: str
    channels: tuple[str, ...]
    reader: Reader
    file_ending: str
    labels: Mapping[str, tuple[int, ...]]
    parity: str
    mirrors_in_graph: bool
    has_probabilities: bool = True
    previous_stage: str = ""
    no_agreement: str = ""
    presentation: Mapping[str, LabelPresentation] = field(default_factory=dict)
    ct_intensities: Mapping[int, IntensityProperties] = field(default_factory=dict)

    @property
    def doubt(self) -> str:
        """What a person is to know of its parity; empty where it is proven."""
        if self.parity == "proven":
            return ""
        return f"{self.name} is {self.parity}: nobody has shown that it gives the labels of its checkpoint"

    @property
    def highest_label(self) -> int:
        """The highest value that a label map has."""
        return max((value for values in self.labels.values() for value in values), default=0)

    @property
    def label_dtype(self) -> "np.dtype[Any]":
        """Type of all label maps: the smaller unsigned one that holds every label."""
        return np.dtype(np.uint8 if self.highest_label <= 255 else np.uint16)


def contract_of(spec: ModelSpec) -> ScanContract:
    """Return the contract of a single model."""
    return ScanContract(
        name=spec.name,
        digest=spec.digest,
        channels=tuple(channel.name for channel in spec.channels),
        reader=spec.reader,
        file_ending=spec.file_ending,
        labels=spec.named_values,
        parity=spec.parity.state,
        mirrors_in_graph=spec.mirroring == "graph",
        previous_stage=spec.previous_stage.model if spec.previous_stage else "",
        no_agreement=why_no_agreement(spec),
        presentation=spec.presentation,
        ct_intensities=ct_intensities_of(spec),
    )


def ct_intensities_of(spec: ModelSpec) -> Mapping[int, IntensityProperties]:
    """Return the training set's intensities of the channels that are normalised as CT, by index."""
    return {
        index: channel.intensity
        for index, channel in enumerate(spec.channels)
        if channel.normalization == "CTNormalization"
    }


def why_no_agreement(spec: ModelSpec) -> str:
    """Return why a network does not say how its folds agree; empty where it does."""
    if spec.votes is not None:
        return ""
    folds = spec.provenance.folds
    if len(folds) == 1:
        return f"{spec.name} has one fold ({folds[0]}), which has no other to agree with"
    return f"{spec.name} was exported without the votes of its folds: export it again, with them"
