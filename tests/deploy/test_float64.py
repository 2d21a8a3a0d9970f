"""Networks in float64: the same network, slab by slab, and float32 again afterwards."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ctseg.deploy import float64
from ctseg.deploy.float64 import in_float64
from ctseg.deploy.parity_data import PreparedCase
from ctseg.deploy.reference import parity_data_of, torch_network
from ctseg.deploy.trained_model import load_trained_model


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1},
        {"stride": (1, 2, 2), "padding": (0, 1, 1)},
        {"dilation": 2, "padding": (2, 2, 1)},
        {"groups": 2},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "replicate"},
    ],
)
def test_convolutions_slab_by_slab_are_pytorchs(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(4, 6, 3, **options)
    images = torch.randn(2, 4, 11, 9, 8)
    expected = torch.nn.Conv3d.forward(layer.double(), images.double())
    layer.float()
    monkeypatch.setattr(float64, "_SLAB_BYTES", 1)
    with in_float64([layer]):
        found = layer(images.double())
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert layer.weight.dtype == torch.float32


def test_a_convolution_may_be_called_as_pytorchs_function(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight = torch.randn(1, 2, 7, 6, 5, dtype=torch.float64), torch.randn(3, 2, 3, 3, 3, dtype=torch.float64)
    expected = torch.nn.functional.conv3d(images, weight, stride=[2], padding=(1,))
    monkeypatch.setattr(float64, "_SLAB_BYTES", 1)
    with in_float64([]):
        found = torch.nn.functional.conv3d(input=images, weight=weight, stride=[2], padding=(1,))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_networks_are_in_float32_again_after_a_failure() -> None:
    class Large(torch.nn.Conv3d):
        def double(self) -> "Large":
            raise MemoryError

    networks = [torch.nn.Conv3d(1, 1, 1), Large(1, 1, 1)]
    with pytest.raises(MemoryError), in_float64(networks):
        pass
    assert networks[0].weight.dtype == torch.float32


def test_buffers_can_be_trained_with_after_float64(trained_unet: Path) -> None:
    model = load_trained_model(trained_unet, folds=(0,))
    model.networks[0].register_buffer("mean", torch.zeros(1))
    spec = model.spec(name="unet", mirroring="none", max_batch_size=1)
    torch_network(model, spec, float64=True)(np.zeros((1, 1, *spec.patch_size), np.float32))
    assert not any(buffer.is_inference() for buffer in model.networks[0].buffers())


def test_weights_are_the_same_after_float64(trained_unet: Path) -> None:
    (network,) = load_trained_model(trained_unet, folds=(0,)).networks
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with in_float64([network]):
        assert {value.dtype for value in network.parameters()} == {torch.float64}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_patches_of_scans_are_compared_with_float64(trained_unet: Path) -> None:
    model = load_trained_model(trained_unet, folds=(0,))
    spec = model.spec(name="unet", mirroring="none", max_batch_size=1)
    case = np.random.default_rng(0).standard_normal((1, 16, 64, 64)).astype(np.float32)
    case[..., 32:, 32:] = 1e-3 * case[..., 32:, 32:] - 1  # air
    case[..., :32, :32] = -1.0  # what a scan was padded with
    scans, _ = parity_data_of(model, spec, [PreparedCase("scan", case)], "noise")
    flattest = case[None, :, :, 32:, 32:]
    assert len(scans.patches) == 3
    assert any(np.array_equal(patch, flattest[0]) for patch in scans.patches)
    in_32, in_64 = (torch_network(model, spec, float64=wanted) for wanted in (False, True))
    expected = np.concatenate([in_64(scans.patches[i : i + 1]) for i in range(3)])
    np.testing.assert_array_equal(scans.patches_logits, expected)
    error = np.linalg.norm(in_32(scans.patches) - expected) / np.linalg.norm(expected)
    assert 0 < error < 3e-6


def test_a_network_that_makes_float32_numbers_itself_is_compared_in_float32(
    trained_unet: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class OfItsOwn(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network
            self.last = torch.nn.Conv3d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.network(x).float())

    model = load_trained_model(trained_unet, folds=(0,))
    model = dataclasses.replace(model, networks=(OfItsOwn(model.networks[0]).eval(),))
    spec = model.spec(name="unet", mirroring="none", max_batch_size=1)
    case = np.random.default_rng(0).standard_normal((1, 16, 32, 32)).astype(np.float32)
    scans, _ = parity_data_of(model, spec, [PreparedCase("scan", case)], "noise")
    np.testing.assert_array_equal(scans.patches_logits, torch_network(model, spec)(scans.patches))
    assert "unet: PyTorch's float32 is the reference, for float64 failed" in caplog.text
