"""A PatchPredictor that runs the checkpoint itself in torch, so that everything but the server is compared."""

import numpy as np
import torch

from ctseg.model_spec import ModelSpec
from ctseg.nnunet.plans import spec_from_plans
from ctseg.predict.predictor import Identity


class TorchPredictor:
    """Runs the network of an nnU-Net predictor.

    Args:
        reference: nnU-Net's predictor, initialised from a trained folder.
        max_batch_size: Most patches in one call.
        name: Of the model.
        configuration: Of the plans; by default the first.
        extra: Further fields of the spec.
    """

    max_in_flight = 1

    def __init__(
        self, reference, *, max_batch_size: int = 2, name: str = "model", configuration: str | None = None, **extra
    ) -> None:
        self._network = reference.network.eval()
        self._network.load_state_dict(reference.list_of_parameters[0])
        self.max_batch_size = max_batch_size
        self.spec: ModelSpec = spec_from_plans(
            reference.plans_manager.plans,
            reference.dataset_json,
            configuration or next(iter(reference.plans_manager.plans["configurations"])),
            name=name,
            mirror_axes=reference.allowed_mirroring_axes,
            max_batch_size=max_batch_size,
            **extra,
        )

    @property
    def identity(self) -> Identity:
        return Identity(self.spec.name, 1, self.spec.digest, (), "in process")

    def predict(self, patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._network(torch.from_numpy(patches)).numpy()
