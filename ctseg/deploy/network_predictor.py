"""PatchPredictor over a network in this process, so that gates run what clients run."""

from ctseg.arrays import Logits, Patches
from ctseg.deploy.runtimes import Network
from ctseg.model_spec import ModelSpec
from ctseg.predict.predictor import Identity


class NetworkPredictor:
    """Runs a network of this process; see :class:`ctseg.predict.predictor.PatchPredictor`.

    Args:
        network: The network.
        spec: Its contract.
    """

    max_in_flight = 1

    def __init__(self, network: Network, spec: ModelSpec) -> None:
        self._network = network
        self.spec = spec
        self.max_batch_size = 1
        self.identity = Identity(spec.name, 1, spec.digest, (), "in process")

    def predict(self, patches: Patches) -> Logits:
        """Run a batch."""
        return self._network(patches)
