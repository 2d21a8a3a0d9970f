"""PatchPredictor: a batch of patches in, logits out; and mirroring on top of any of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from ctseg.arrays import Logits, Patches
from ctseg.model_spec import ModelSpec
from ctseg.numerics.mirroring import mirror_subsets


@dataclass(frozen=True)
class Runner:
    """What runs a network on one server.

    Attributes:
        server: Its address.
        model: Of the network.
        runtime: What runs it there, as the build found it; empty where that is not known.
        relative_l2: By how much its logits differed from PyTorch's when it was built; None: not known.
        answers: How many calls it has answered so far.
    """

    server: str
    model: str
    runtime: str
    relative_l2: float | None
    answers: int


@dataclass(frozen=True)
class Identity:
    """What runs the network, for reports.

    Attributes:
        model: Its name.
        version: Of the model, as the server numbers it.
        digest: Of its spec.
        servers: Addresses of all servers that may run it; empty for a network in this process.
        transport: How tensors travel: ``shared memory``, ``grpc``, both, ``in process``, or ``whole scans``.
        members: Of a recipe, each with its own.
        runners: What runs the network, or the members' networks, on each server that has come so far.
    """

    model: str
    version: int
    digest: str
    servers: tuple[str, ...]
    transport: str
    members: tuple["Identity", ...] = ()
    runners: tuple[Runner, ...] = ()


class PatchPredictor(Protocol):
    """What runs the network, and says who it is. ``predict`` is called from several threads at once."""

    @property
    def identity(self) -> Identity:
        """Which network runs where."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """The contract of the network that runs."""
        ...

    @property
    def max_batch_size(self) -> int:
        """Most patches in one call."""
        ...

    @property
    def max_in_flight(self) -> int:
        """How many calls at once keep the network busy; more only cost memory."""
        ...

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        """Return the logits of a batch.

        Args:
            patches: (batch, channels, *patch_size), float32, C-contiguous; not kept, not changed.
            votes: Whether the votes of the folds are wanted, too; only of a network whose spec has them.

        Returns:
            (batch, heads, *patch_size), float32, finite, perhaps read-only; behind the heads the votes, where they are
            wanted, see :mod:`ctseg.numerics.votes`. It may lie in memory that the predictor uses again once the array
            and all its views are gone: drop it when done.

        Raises:
            ServerAwayError: Every server has been away for as long as the predictor waits.
            InferenceFailedError: Among other reasons: a logit is NaN or infinite.
            ServerError: One of its children says what happened, with model and server.
        """
        ...


def predicting(predictor: PatchPredictor, *, votes: bool) -> Callable[[Patches], Logits]:
    """Return what answers patches with votes or without; without, a predictor need not know what votes are."""
    return partial(predictor.predict, votes=True) if votes else predictor.predict


class PredictorAround:
    """What a predictor around another one says of itself: all that the other one says.

    Args:
        predictor: The other one.
    """

    def __init__(self, predictor: PatchPredictor) -> None:
        self._predictor = predictor

    @property
    def identity(self) -> Identity:
        """The wrapped predictor's."""
        return self._predictor.identity

    @property
    def spec(self) -> ModelSpec:
        """The wrapped predictor's."""
        return self._predictor.spec

    @property
    def max_batch_size(self) -> int:
        """The wrapped predictor's."""
        return self._predictor.max_batch_size

    @property
    def max_in_flight(self) -> int:
        """The wrapped predictor's."""
        return self._predictor.max_in_flight


class MirroringPredictor(PredictorAround):
    """Test-time mirroring: the mean of the answers over all subsets of the spec's mirror axes.

    Args:
        predictor: Runs the network without mirroring.

    Source:
        nnU-Net's ``_internal_maybe_mirror_and_predict``.
    """

    def __init__(self, predictor: PatchPredictor) -> None:
        super().__init__(predictor)
        self._subsets = mirror_subsets([axis + 2 for axis in predictor.spec.mirror_axes])

    @property
    def requests_per_batch(self) -> int:
        """How often the network runs for one batch."""
        return len(self._subsets)

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        """See :meth:`PatchPredictor.predict`; votes are averaged as logits are."""
        predict = predicting(self._predictor, votes=votes)
        total: Logits = predict(patches).copy()
        for subset in self._subsets[1:]:
            total += np.flip(predict(np.ascontiguousarray(np.flip(patches, subset))), subset)
        total /= len(self._subsets)
        return total
