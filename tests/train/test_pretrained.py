"""Weights from a file: what fits is set, what does not is named."""

from pathlib import Path

import pytest
import torch

from ctseg.errors import CheckpointError
from ctseg.train.pretrained import load_pretrained
from ctseg.train.swin_unetr import SwinUNETR
from tests.support.swin_weights import published_encoder


def small(channels: int = 1, heads: int = 2) -> SwinUNETR:
    return SwinUNETR(channels, heads, feature_size=12, depths=(1, 1, 1, 1), window_size=4)


def test_the_published_encoder_is_loaded_and_reported(tmp_path: Path) -> None:
    network = small()
    decoder = network.decoder1.state_dict()["conv_block.conv1.conv.weight"].clone()
    weights = published_encoder(network)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "ssl.pt")
    report = load_pretrained(network, tmp_path / "ssl.pt")
    assert len(report.loaded) == len(network.swinViT.state_dict())
    assert report.unused == ("module.rotation_head.weight",)
    for name in (
        "layers1.0.blocks.0.mlp.fc1.weight",
        "patch_embed.proj.weight",
        "layers4.0.downsample.reduction.weight",
    ):
        own = network.swinViT.state_dict()[name.replace("mlp.fc1", "mlp.linear1")]
        assert torch.equal(own, weights[f"module.{name}"]), name
    assert torch.equal(network.decoder1.state_dict()["conv_block.conv1.conv.weight"], decoder)
    assert report.kept["out.conv.conv.weight"] == "not in the file"
    assert 0 < report.loaded_share < 1
    assert "not loaded: out.conv.conv.weight (not in the file)" in str(report)


def test_monais_own_loader_agrees(tmp_path: Path) -> None:
    ours, theirs = small(), small()
    weights = published_encoder(ours)
    torch.save({"state_dict": weights}, tmp_path / "ssl.pt")
    load_pretrained(ours, tmp_path / "ssl.pt")
    theirs.load_from({"state_dict": weights})
    for name, tensor in theirs.swinViT.state_dict().items():
        assert torch.equal(ours.swinViT.state_dict()[name], tensor), name


def test_other_numbers_of_channels_and_labels_keep_those_layers(tmp_path: Path) -> None:
    torch.save({"network_weights": small(channels=1, heads=14).state_dict()}, tmp_path / "checkpoint_final.pth")
    report = load_pretrained(small(channels=2, heads=3), tmp_path / "checkpoint_final.pth")
    assert report.kept["out.conv.conv.weight"] == "(14, 12, 1, 1, 1) in the file, (3, 12, 1, 1, 1) here"
    assert report.kept["swinViT.patch_embed.proj.weight"].endswith("(12, 2, 2, 2, 2) here")
    assert "decoder1.conv_block.conv1.conv.weight" in report.loaded
    assert report.unused == ()


def test_a_file_for_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="none of its 1 tensors fits"):
        load_pretrained(small(), tmp_path / "other.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="no weights found"):
        load_pretrained(small(), tmp_path / "empty.pt")
