"""What version 1 of the spec could say keeps its digest for good, whatever later versions add."""

import json
from typing import Any

import pytest

from ctseg.model_spec import KeepLargest, ModelSpec, Parity, Provenance, Tensor
from ctseg.nnunet.plans import spec_from_plans
from tests.support.nnunet_plans import make_dataset, make_plans

SPLINE = "resample_data_or_seg_to_shape"
CUBIC = (SPLINE, {"is_seg": False, "order": 3, "order_z": 1, "force_separate_z": True})
TORCH = ("resample_torch_fornnunet", {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False})
LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "middle": 3}
HALF = {"input": Tensor(name="input", dtype="FP16"), "output": Tensor(name="logits", dtype="FP16")}
TWO = {"normalization": ("CTNormalization", "ZScoreNormalization"), "use_mask_for_norm": (False, True)}

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "3d": ({}, make_dataset(LABELS), {}),
    "lowres": ({"configuration": "3d_lowres", "spacing": (6.0, 3.0, 3.0)}, make_dataset(), {}),
    "2d": (
        {"configuration": "2d", "patch_size": (48, 64), "spacing": (2.0, 1.5)},
        make_dataset(),
        {"mirror_axes": (0, 1)},
    ),
    "regions": ({}, make_dataset(REGIONS, regions_class_order=[1, 2, 3]), {}),
    "ignore label": ({}, make_dataset({**LABELS, "ignore": 4}), {}),
    "118 labels": ({}, make_dataset({"background": 0, **{f"l{i}": i for i in range(1, 119)}}), {}),
    "two channels": (TWO, make_dataset(channels=2), {}),
    "other normalisations": (
        {"normalization": ("RescaleTo01Normalization", "RGBTo01Normalization", "NoNormalization")},
        make_dataset(channels=3),
        {},
    ),
    "cubic logits": ({"resampling_logits": CUBIC}, make_dataset(), {}),
    "torch resampling": ({"resampling_data": TORCH, "resampling_logits": TORCH}, make_dataset(), {}),
    "no resampling": (
        {"resampling_data": ("no_resampling_hack", {}), "resampling_logits": ("no_resampling_hack", {})},
        make_dataset(),
        {},
    ),
    "transposed": ({"transpose_forward": (2, 0, 1), "spacing": (2.0, 3.0, 2.0)}, make_dataset(), {}),
    "other reader": ({"reader": "NibabelIOWithReorient"}, {**make_dataset(), "file_ending": ".nrrd"}, {}),
    "post-processing": (
        {},
        make_dataset(LABELS),
        {"postprocessing": (KeepLargest(labels=(1, 2)), KeepLargest(labels=(3,)))},
    ),
    "mirrored in the graph": ({}, make_dataset(), {"mirroring": "graph"}),
    "not mirrored": ({}, make_dataset(), {"mirror_axes": None, "mirroring": "none"}),
    "half": ({}, make_dataset(), {**HALF, "precision": "fp16", "max_batch_size": 2, "network_sha256": "0" * 64}),
    "proven": ({}, make_dataset(), {"parity": Parity(state="proven"), "provenance": Provenance(dataset="Größe")}),
}

DIGESTS = {
    "3d": "26d230bf69405662b2b97d8da27454c43ebc413d0361f06c567be048fc6041ec",
    "lowres": "86a63c668dbb90ce530cf15ed977b939a0f4b53d90334627917ef1108c8bbfe1",
    "2d": "95accfa795e6b1c58d69fc5f32953089a11f6e831daf394ae2b137d2921eeca7",
    "regions": "792ee4a7b61e70e5df686c43a1f05792329ae56566dca9fcd76bd9720d7de818",
    "ignore label": "856a28c58978cdd23c4a03a5342c4baca4b7a73d2dade920dffbdf63386a6172",
    "118 labels": "08896815d8a335f8711bd4c70a815e52dc3742d54a112b94dcd7736bb74fe3f3",
    "two channels": "04f5266f19e6b7b0da4786a2a773fa427eb3a0f00f18ff9cb78841bc7c7f02f0",
    "other normalisations": "4b0e39f628c456e3bd4122fda847431ba859dde575a1f9a8055a55fae7418e5b",
    "cubic logits": "0962ce2d268539721d660f53df9a48a57079415405e42917054b3a590b76f913",
    "torch resampling": "bbe831a7c80ec5bcaba6eb7300d9b401b3ab16dc6347c1f24f9468d60dff4870",
    "no resampling": "27185665b02c47b83df2afe6f846fd16f50090cf40cd8b091242b842cbf25888",
    "transposed": "e966dc11da46b069a3e0f5e4e9d44f1487a93e5a97abec0c14db2a1e0c14a0e7",
    "other reader": "0182c3738e145582111e8e9298623ee4b9f16259c2db754098b48a4fb0b6be15",
    "post-processing": "2353cb739965c951dfcd0e784795a411ae74800a8319055b3ba28b188b6da06f",
    "mirrored in the graph": "36a6831f9a51de3217c86281e5db5509ae6fa14a29f3dfd070b60bf428e6f3c4",
    "not mirrored": "693f884afa9067df264fd701156fe2a00dbe1bf31ec1ec637c0f5f90924ff84a",
    "half": "facbe808a4e1b31b80c3d04c411984ab5cafb948ed65d7dd8b28b4b6ed234009",
    "proven": "7eef8cbe2ac39b818be1159b0c296e073d39cb8a76e927baa66098933c0e7d22",
}
"""As ctseg computed them when there was no other version."""


def spec_of(kind: str) -> ModelSpec:
    changes, dataset, more = KINDS[kind]
    plans = make_plans(**changes)
    configuration = next(iter(plans["configurations"]))
    return spec_from_plans(plans, dataset, configuration, **{"name": "m", "mirror_axes": (0, 1, 2), **more})


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_of_version_1_keeps_its_digest_for_good(kind: str) -> None:
    spec = spec_of(kind)
    assert json.loads(spec.to_json())["schema_version"] == 1
    assert spec.digest == DIGESTS[kind]
    assert ModelSpec.from_json(spec.to_json(), source=kind).digest == DIGESTS[kind]
