"""What the parts of the proof share: sizes, networks, folders, and what the first part found on this machine."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmarks.measured_process import Measured, run_measured
from benchmarks.models import Network, ctseg_command, nnunet_environment, trained_folder
from benchmarks.plans import make_plans
from ctseg.documents import Document
from ctseg.serving.entries import read_entry
from ctseg.train.architectures import swin_architecture, unet_architecture

ROOT = Path(__file__).parents[2]
DEMO_SCANS = ROOT / "examples" / "demo_data" / "images"
DEMO = "sarcoma"
SPACING_MM = (1.5, 0.8, 0.8)
"""Of the networks with random weights, (z, y, x)."""
Device = Literal["cpu", "gpu"]


class Found(Document):
    """What this machine has, as the first part found it.

    Attributes:
        gpus: How many CUDA shows to torch.
        onnxruntime_cuda: ONNX Runtime ran a network on a GPU.
        tensorrt: Version of the TensorRT that can compile here; empty without.
        triton: Where tritonserver comes from; empty without.
        triton_backends: What it can run.
        nnunet: ``nnUNetv2_predict`` can be started.
    """

    gpus: int = 0
    onnxruntime_cuda: bool = False
    tensorrt: str = ""
    triton: str = ""
    triton_backends: tuple[str, ...] = ()
    nnunet: bool = False


@dataclass(frozen=True)
class ProofNetwork(Network):
    """A network at nnU-Net's default sizes, with random weights.

    Attributes:
        label: Its model's name.
        features: Channels of each stage of a U-Net; the feature size of a Swin UNETR.
        blocks: Residual blocks of each stage; empty for a plain U-Net.
    """

    label: str = ""
    features: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Of the model in the repository."""
        return self.label

    @property
    def architecture(self) -> dict[str, Any]:
        """Of the plans."""
        if self.kind == "Swin UNETR":
            return swin_architecture(3, feature_size=self.features[0])
        if self.blocks:
            decoder = {
                "n_blocks_per_stage": list(self.blocks),
                "n_conv_per_stage_decoder": [1] * (len(self.blocks) - 1),
            }
            return unet_architecture(3, features=self.features, residual=True, more=decoder)
        return unet_architecture(3, features=self.features, blocks=2)

    @property
    def plans(self) -> dict[str, Any]:
        """``plans.json``."""
        return make_plans(
            name=self.dataset,
            patch_size=self.patch_size,
            spacing=SPACING_MM,
            original_spacing=SPACING_MM,
            median_shape=(200, 512, 512),
            architecture=self.architecture,
        )


def demo_network(entry_folder: Path) -> Network:
    """Return the name and sizes under which an entry's network is written for nnU-Net."""
    spec = read_entry(entry_folder).newest.spec
    depth, rows, columns = spec.patch_size
    return Network("U-Net", spec.num_heads, (depth, rows, columns), _DEMO_NUMBER)


_DEMO_NUMBER = 800
_WIDTHS = (32, 64, 128, 256, 320, 320)
_RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
"""Of nnU-Net's ResEnc M and L, which differ in patch and batch."""
FULL = (
    ProofNetwork("U-Net", 2, (128, 128, 128), 801, "unet", _WIDTHS),
    ProofNetwork("U-Net", 25, (128, 128, 128), 802, "resenc", _WIDTHS, _RESIDUAL_BLOCKS),
    ProofNetwork("Swin UNETR", 14, (128, 128, 128), 803, "swin", (48,)),
)
SMALL = (
    ProofNetwork("U-Net", 2, (32, 64, 64), 801, "unet", (8, 16, 32)),
    ProofNetwork("U-Net", 5, (32, 64, 64), 802, "resenc", (8, 16, 32), (1, 2, 2)),
    ProofNetwork("Swin UNETR", 3, (32, 64, 64), 803, "swin", (12,)),
)


@dataclass(frozen=True)
class Bench:
    """Where the parts run.

    Attributes:
        scratch: Folder for what one part makes and another needs.
        rehearse: On the CPU, at small sizes.
        killed_at: When the part is killed, of ``time.monotonic()``.
    """

    scratch: Path
    rehearse: bool
    killed_at: float = math.inf

    @property
    def left_s(self) -> float:
        """Time that is left for the part."""
        return self.killed_at - time.monotonic()

    @property
    def networks(self) -> tuple[ProofNetwork, ...]:
        """The networks with random weights."""
        return SMALL if self.rehearse else FULL

    @property
    def device(self) -> Device:
        """Where networks run."""
        return "cpu" if self.rehearse else "gpu"

    @property
    def torch_device(self) -> str:
        """The same in torch's and nnU-Net's word."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def timing_s(self) -> float:
        """How long one speed is measured."""
        return 0.2 if self.rehearse else 1.5

    @property
    def bundles(self) -> Path:
        """Folder of the bundles, by name."""
        return self.scratch / "bundles"

    @property
    def repository(self) -> Path:
        """Triton's model repository."""
        return self.scratch / "repository"

    @cached_property
    def found(self) -> Found:
        """What the first part found; nothing where it did not run."""
        file = self.scratch / "found.json"
        return Found.model_validate_json(file.read_bytes()) if file.is_file() else Found()

    def keep(self, found: Found) -> None:
        """Keep what was found for the other parts."""
        (self.scratch / "found.json").write_text(found.model_dump_json(), encoding="utf-8")

    def trained(self, network: Network) -> Path:
        """Return nnU-Net's folder of a network."""
        return trained_folder(self.scratch, network)

    @property
    def demo(self) -> Network:
        """The demo's network."""
        return demo_network(ROOT / "model_repository" / DEMO)

    @property
    def demo_folder(self) -> Path:
        """nnU-Net's folder of the demo's network."""
        return self.trained(self.demo)

    def ctseg(self, *words: str | Path, timeout_s: float = 300) -> Measured:
        """Run a command of ctseg.

        Raises:
            SetupError: It failed; the end of its output stands in the message.
        """
        return self.run(ctseg_command(*words), timeout_s=timeout_s)

    def run(self, words: Sequence[str | Path], *, timeout_s: float = 300) -> Measured:
        """Run a command in the environment in which nnU-Net's commands find the networks.

        Raises:
            SetupError: It failed; the end of its output stands in the message.
        """
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            (self.scratch / name).mkdir(exist_ok=True)
        # nnU-Net's trainer compiles the network unless told otherwise: minutes, for three steps
        environment = {**nnunet_environment(self.scratch), "nnUNet_compile": "f"}
        return run_measured(words, environment=environment, timeout_s=timeout_s)[0]

    def python(self, code: str, *, timeout_s: float = 300) -> Measured:
        """Run lines of Python in a process of their own.

        Raises:
            SetupError: They failed; the end of their output stands in the message.
        """
        return self.run([sys.executable, "-c", code], timeout_s=timeout_s)
