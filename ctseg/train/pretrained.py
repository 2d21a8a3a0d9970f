"""Weights from a file for a network that begins its training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ctseg.errors import CheckpointError
from ctseg.nnunet.checkpoint import read_checkpoint

_HOLDERS = ("network_weights", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
# MONAI's self-supervised Swin encoder came before its MLP layers were renamed, and without the outer name
_RENAMED = ((".mlp.fc1.", ".mlp.linear1."), (".mlp.fc2.", ".mlp.linear2."))
_ENCODER = "swinViT."


@dataclass(frozen=True)
class PretrainedReport:
    """What became of the weights in a file.

    Attributes:
        source: The file.
        loaded: Names of the network's tensors that were set.
        kept: Names of the network's tensors that keep their random values, with the reason.
        unused: Names in the file that the network does not have.
        loaded_share: Share of the network's numbers that were set.
    """

    source: Path
    loaded: tuple[str, ...]
    kept: Mapping[str, str]
    unused: tuple[str, ...]
    loaded_share: float

    def __str__(self) -> str:
        lines = [
            f"pretrained weights from {self.source}: {len(self.loaded)} tensors loaded "
            f"({100 * self.loaded_share:.1f} % of the network's numbers), {len(self.kept)} kept as they were, "
            f"{len(self.unused)} in the file not used",
            *(f"  not loaded: {name} ({reason})" for name, reason in self.kept.items()),
            *(f"  not used: {name}" for name in self.unused),
        ]
        return "\n".join(lines)


def load_pretrained(network: torch.nn.Module, path: Path) -> PretrainedReport:
    """Set the weights that a file and a network share by name and shape.

    Takes MONAI's published layouts (the self-supervised Swin encoder, whose names begin with
    ``module.``, and the whole Swin UNETR under ``state_dict``), nnU-Net's checkpoints, and bare
    state dictionaries. No code in the file is run.

    Args:
        network: Changed in place.
        path: A file written by ``torch.save``.

    Returns:
        What was loaded, what was not, and why.

    Raises:
        CheckpointError: The file is unreadable, or shares no tensor with the network.

    Source:
        MONAI's ``SwinUNETR.load_from`` for the names of the self-supervised encoder.
    """
    weights = weights_in(path)
    own = network.state_dict()
    loaded, kept, used = {}, {}, set()
    by_name = {_name_in(own, key): key for key in weights}
    for name, tensor in own.items():
        key = by_name.get(name)
        if key is None:
            kept[name] = "not in the file"
        elif weights[key].shape != tensor.shape:
            kept[name] = f"{tuple(weights[key].shape)} in the file, {tuple(tensor.shape)} here"
            used.add(key)
        else:
            loaded[name] = weights[key].to(tensor.dtype)
            used.add(key)
    if not loaded:
        raise CheckpointError(
            f"{path}: none of its {len(weights)} tensors fits this network ({len(own)} tensors); the file has "
            f"{', '.join(sorted(weights)[:3])} …, the network {', '.join(sorted(own)[:3])} …"
        )
    network.load_state_dict({**own, **loaded})
    numbers = sum(tensor.numel() for tensor in own.values())
    return PretrainedReport(
        source=path,
        loaded=tuple(loaded),
        kept=kept,
        unused=tuple(sorted(set(weights) - used)),
        loaded_share=sum(tensor.numel() for tensor in loaded.values()) / numbers,
    )


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights in a file, by the names that they have there.

    Raises:
        CheckpointError: The file is unreadable, or there are no weights in it.
    """
    found: object = read_checkpoint(path)
    for holder in _HOLDERS:
        if isinstance(found, Mapping) and isinstance(found.get(holder), Mapping):
            found = found[holder]
            break
    weights = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, Mapping) else {}
    if not weights:
        raise CheckpointError(f"{path}: no weights found, neither at its top nor under {', '.join(_HOLDERS)}")
    return weights


def _name_in(own: Mapping[str, torch.Tensor], key: str) -> str:
    name = key
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    for before, now in _RENAMED:
        if name not in own:
            name = name.replace(before, now)
    return name if name in own else next((n for n in (_ENCODER + name,) if n in own), name)
