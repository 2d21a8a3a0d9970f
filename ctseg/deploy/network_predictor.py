"""PatchPredictor over a network in this process, so that gates run what clients run."""

from pathlib import Path

from ctseg.arrays import Logits, Patches
from ctseg.deploy.bundle import model_name
from ctseg.deploy.exact_norms import write_with_exact_norms
from ctseg.deploy.runtimes import Network, onnxruntime_network
from ctseg.files.owned_folder import owned_folder
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

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        """Run a batch.

        Raises:
            ValueError: Votes are wanted, which no gate asks this for.
        """
        if votes:
            raise ValueError(f"{self.spec.name}: a network of this process gives no votes")
        return self._network(patches)


def exact_predictor(bundle: Path, spec: ModelSpec) -> NetworkPredictor:
    """Return the FP32 graph of a bundle in ONNX Runtime on the CPU, with exact sums.

    Args:
        bundle: Folder of the bundle.
        spec: What it holds.

    Raises:
        SpecError: The graph cannot be loaded.
        SetupError: ONNX or ONNX Runtime is not installed.
    """
    with owned_folder("ctseg-graph-") as temporary:
        graph = write_with_exact_norms(bundle / model_name("fp32"), temporary)
        return NetworkPredictor(onnxruntime_network(graph), spec)
