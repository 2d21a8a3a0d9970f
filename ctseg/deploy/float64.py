"""A trained network in float64: what float32 logits are measured by."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_SLAB_BYTES = 256 << 20
"""Of what PyTorch unfolds for a convolution of three dimensions: of a whole patch, that would be tens of GiB."""


@contextmanager
def in_float64(networks: "Sequence[torch.nn.Module]") -> Iterator[None]:
    """Let networks work in float64 in the block; their float32 weights are the same behind it.

    Args:
        networks: They take float64 then.
    """
    try:
        for network in networks:
            network.double()
        with _slab_by_slab():
            yield
    finally:
        for network in networks:
            network.float()


def _slab_by_slab() -> Any:
    """Return a context in which convolutions of three dimensions are done slab by slab of their output."""
    import torch
    from torch.overrides import TorchFunctionMode

    functions = (torch.conv3d, torch.nn.functional.conv3d)

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return (_conv3d if function in functions else function)(*args, **(kwargs or {}))

    return Mode()


def _conv3d(
    input: "torch.Tensor",  # noqa: A002 (torch's name, by which it may be given)
    weight: "torch.Tensor",
    bias: "torch.Tensor | None" = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> "torch.Tensor":
    import torch

    images = input
    if isinstance(padding, str) or images.ndim != 5:
        return torch.conv3d(images, weight, bias, stride, padding, dilation, groups)
    stride, padding, dilation = (_three(value) for value in (stride, padding, dilation))
    padded = torch.nn.functional.pad(images, [amount for amount in reversed(padding) for _ in range(2)])
    reach = [(side - 1) * step + 1 for side, step in zip(weight.shape[2:], dilation, strict=True)]
    sides = [(n - a) // step + 1 for n, a, step in zip(padded.shape[2:], reach, stride, strict=True)]
    plane_bytes = images.element_size() * images.shape[1] * int(np.prod(weight.shape[2:])) * sides[1] * sides[2]
    planes = max(1, _SLAB_BYTES // plane_bytes)
    slabs = []
    for first in range(0, sides[0], planes):
        last = min(sides[0], first + planes) - 1
        slab = padded[:, :, first * stride[0] : last * stride[0] + reach[0]]
        slabs.append(torch.conv3d(slab, weight, bias, stride, 0, dilation, groups))
    return torch.cat(slabs, dim=2)


def _three(value: Any) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 3 if len(values) == 1 else values
