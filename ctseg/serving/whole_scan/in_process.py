"""PatchPredictor over Triton's in-process calls: the network's entry beside the one for whole scans."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Logits, Patches
from ctseg.errors import InferenceFailedError, ServerUnavailableError, SetupError, SpecError
from ctseg.model_spec import ModelSpec
from ctseg.numerics.finite import all_finite
from ctseg.numerics.votes import logits_and_votes
from ctseg.predict.predictor import Identity
from ctseg.serving.whole_scan.shared_memory import SHARED_MEMORY, SharedMemoryUse, bytes_of_window
from ctseg.serving.whole_scan.tensors import from_triton, to_triton

_MOST_IN_FLIGHT = 4
_WORTHWHILE_BATCH_BYTES = 128 << 20
"""Windows that are larger than this together keep a GPU as busy one by one, in less memory."""


class InProcessPredictor:
    """Runs a network that the same Triton serves; used from any number of threads.

    Args:
        backend: The module ``triton_python_backend_utils``.
        spec: The network's contract.
        version: Of the model; no other one is called.
        instances: How many of them run.
        network_backend: Triton's name of the backend that runs it.
        memory: What calls may take of it, shared by all networks of the entry.
        is_alone: Whether one scan has the network to itself: batches keep a GPU busier, and single windows of several
            scans are joined by Triton.

    Raises:
        SpecError: Its tensors cannot be handed over in the process.
        SetupError: Shared memory has no room for one window now.
    """

    def __init__(
        self,
        backend: Any,
        spec: ModelSpec,
        version: int,
        *,
        instances: int,
        network_backend: str,
        memory: SharedMemoryUse,
        is_alone: Callable[[], bool],
    ) -> None:
        if "BF16" in (spec.input.dtype, spec.output.dtype):
            raise SpecError(f"{spec.name}: its tensors are BF16, which numpy has no type for: no whole scans of it")
        self._backend = backend
        self._spec = spec
        self._version = version
        self._memory = memory
        self._is_alone = is_alone
        window, voting = (bytes_of_window(spec, network_backend, votes=votes) for votes in (False, True))
        if window > memory.most_bytes:
            raise SetupError(
                f"{spec.name}: a window takes {window / (1 << 20):,.0f} MB of shared memory, and calls may take "
                f"{memory.most_bytes / (1 << 20):,.0f} MB of {SHARED_MEMORY}: start the server with more of it (docker "
                "run --shm-size, an emptyDir of medium Memory), or find out who has filled it"
            )
        self._window_bytes, self._voting_window_bytes = window, voting
        largest = max(spec.patch_bytes, spec.logits_bytes)
        fits = max(1, memory.most_bytes // voting)
        self._batch = min(spec.max_batch_size, max(1, _WORTHWHILE_BATCH_BYTES // largest), fits)
        memory.expect(voting * self._batch)
        self._in_flight = max(1, min(_MOST_IN_FLIGHT, max(2, instances + 1), fits // self._batch))

    @property
    def identity(self) -> Identity:
        """The network, in this server."""
        return Identity(self._spec.name, self._version, self._spec.digest, servers=(), transport="in process")

    @property
    def spec(self) -> ModelSpec:
        """The contract of the network that runs."""
        return self._spec

    @property
    def max_batch_size(self) -> int:
        """Most patches in one call: one while several scans take turns."""
        return self._batch if self._is_alone() else 1

    @property
    def max_in_flight(self) -> int:
        """How many calls at once keep the network busy."""
        return self._in_flight

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        """See :meth:`ctseg.predict.predictor.PatchPredictor.predict`."""
        what = f"{self._spec.name} version {self._version}"
        size = (self._voting_window_bytes if votes else self._window_bytes) * len(patches)
        self._memory.take(size, what)
        kept = False
        try:
            answer, counts = self._answer(patches, what, votes=votes)
            # what is kept is not copied: views of it keep it alive, so its memory is free when it is gone
            if counts is not None:
                logits: Logits = logits_and_votes(answer, counts, self._spec)
                del counts
            elif kept := answer.dtype == np.float32 and self._memory.keep(size):
                weakref.finalize(answer, self._memory.give_back, size, kept=True).atexit = False
                logits = answer
            else:
                logits = answer.astype(np.float32)
        finally:
            if not kept:
                self._memory.give_back(size)
        if not all_finite(logits):
            raise InferenceFailedError(
                f"{what}: expected finite logits, found NaN or infinity: serve the network with a higher precision "
                "(fp32), or check the scan's intensities"
            )
        return logits

    def _answer(
        self, patches: Patches, what: str, *, votes: bool
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
        """Return the network's own tensors, views of shared memory: the logits, and the votes if they are wanted."""
        spec, backend = self._spec, self._backend
        sent = patches.astype(np.float16 if spec.input.dtype == "FP16" else np.float32, copy=False)
        try:
            response = backend.InferenceRequest(
                model_name=spec.name,
                model_version=self._version,
                requested_output_names=[spec.output.name, *([spec.votes.name] if votes and spec.votes else [])],
                inputs=[to_triton(backend, spec.input.name, sent)],
            ).exec()
        except Exception as error:  # of the stub: its own kinds
            raise InferenceFailedError(f"{what} was not called: {error}: is {SHARED_MEMORY} large enough?") from error
        if response.has_error():
            raise _error_of(backend, response.error(), what)
        answer = from_triton(backend.get_output_tensor_by_name(response, spec.output.name))
        expected = (len(patches), spec.num_heads, *spec.patch_size)
        if answer.shape != expected:
            raise InferenceFailedError(f"{what}: expected logits of shape {expected}, found {answer.shape}")
        if not votes or spec.votes is None:
            return answer, None
        counts = from_triton(backend.get_output_tensor_by_name(response, spec.votes.name))
        if counts.shape != expected or counts.dtype != np.uint8 or int(counts.max(initial=0)) > spec.votes.folds:
            raise InferenceFailedError(
                f"{what}: expected votes of {spec.votes.folds} folds of shape {expected}, found {counts.dtype} "
                f"{counts.shape}, up to {counts.max(initial=0)}"
            )
        return answer, counts


def _error_of(backend: Any, error: Any, what: str) -> InferenceFailedError | ServerUnavailableError:
    """Return why a network gave no answer: it is away, as an old version is that has been replaced, or it failed."""
    kinds = backend.TritonError
    is_away = error.code() in (kinds.UNAVAILABLE, kinds.NOT_FOUND, kinds.CANCELLED)
    kind = ServerUnavailableError if is_away else InferenceFailedError
    return kind(f"{what} gave no logits: {error.message()}")
