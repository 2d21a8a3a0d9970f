"""What an engine is made of is read in the words of TensorRT 10 and 11, and nothing is proven by what is left open."""

import json

import pytest

from ctseg.deploy.engine_types import require_precision, types_of_engine
from ctseg.errors import SpecError

TENSORRT_10 = {
    "Layers": [
        {
            "Name": "conv",
            "Inputs": [{"Name": "a", "Dimensions": [1, 4], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [
                {
                    "Name": "b",
                    "Dimensions": [1, 4],
                    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                }
            ],
        },
        {"Name": "norm", "Inputs": [], "Outputs": [{"Name": "c", "Format/Datatype": "Row major linear FP32"}]},
    ],
    "Bindings": ["a", "c"],
}
TENSORRT_11 = {
    "Layers": [
        {
            "Name": "conv",
            "Inputs": [{"Name": "a", "Format": "Row major linear", "DataType": "Float"}],
            "Outputs": [{"Name": "b", "Format": "Channel major, channel % 8 == 0", "DataType": "Half"}],
        },
        {"Name": "norm", "Inputs": [], "Outputs": [{"Name": "c", "Format": "Row major linear", "DataType": "Float"}]},
    ],
    "I/O Tensors": [{"Name": "a", "DataType": "Float"}],
}


@pytest.mark.parametrize("information", [TENSORRT_10, TENSORRT_11])
def test_precision_is_read_from_the_inspector_of_both_major_versions(information: object) -> None:
    assert types_of_engine(json.dumps(information)) == {"layers": 2, "fp32": 2, "fp16": 1}


def test_inspector_without_details_proves_nothing() -> None:
    with pytest.raises(SpecError, match=r"without detailed profiling"):
        types_of_engine(json.dumps({"Layers": ["conv", "norm"]}))
    with pytest.raises(SpecError, match=r"not understood"):
        types_of_engine("{}")


OPEN = {
    "Name": "x",
    "Location": "Device",
    "Dimensions": [-1, 2, 96, 96, 96],
    "Format/Datatype": "N/A due to dynamic shapes",
}
"""What the inspector writes about a tensor of an engine that is dynamic in the batch."""


def inspected(*weights: str, tensors: str = OPEN["Format/Datatype"], tactic: str = "") -> dict[str, int]:
    """Types of an engine with one layer for each type of weights, as the inspector describes it."""
    tensor = {**OPEN, "Format/Datatype": tensors}
    return types_of_engine(
        json.dumps(
            {
                "Layers": [
                    {
                        "Name": "conv",
                        "LayerType": "CaskConvolution",
                        "Inputs": [tensor],
                        "Outputs": [tensor],
                        "Weights": {"Type": kind, "Count": 9408},
                        "Bias": {"Type": "Float", "Count": 64},
                        "TacticName": tactic,
                    }
                    for kind in weights
                ],
                "Bindings": ["x"],
            }
        )
    )


HALF_TACTIC = "sm80_xmma_fprop_implicit_gemm_indexed_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x32"


def test_type_that_the_inspector_leaves_open_is_evidence_of_nothing() -> None:
    assert inspected("Half", "Float", tactic=HALF_TACTIC) == {
        "layers": 2, "unknown": 2, "weights_fp16": 1, "weights_fp32": 2, "tactics_fp16": 2,
    }  # fmt: skip
    indices = {**OPEN, "Format/Datatype": "Row major linear INT32"}
    assert types_of_engine(json.dumps({"Layers": [{"Inputs": [indices], "Outputs": []}]})) == {"layers": 1}
    assert "tactics_fp16" not in inspected("Float", tactic="sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwc")


def test_engine_of_dynamic_shapes_is_proven_by_the_parsed_network() -> None:
    proofs = require_precision(inspected("Float"), "fp32", network_types={"fp32": 30}, source="x")
    assert proofs == (
        "parsed network: 30 layers",
        "engine's weights: 1 layers",
        "(the inspector leaves the tensors of 1 layers open)",
    )
    proofs = require_precision(
        inspected("Half", tactic=HALF_TACTIC), "fp16", network_types={"fp32": 8, "fp16": 30}, source="x"
    )
    assert "parsed network: 30 layers" in proofs
    assert "names of kernels: 1 layers" in proofs
    assert require_precision({"layers": 9, "unknown": 9}, "fp16", network_types={"fp16": 30}, source="x")


@pytest.mark.parametrize(
    ("types", "precision", "network_types", "words"),
    [
        (inspected("Half"), "fp32", {"fp32": 30}, "found 1 layers of half precision in the engine's weights"),
        (inspected("Float", tensors="Half"), "fp32", {"fp32": 30}, "half precision in the engine's tensors"),
        ({"fp32": 9, "bf16": 1}, "fp32", {"fp32": 30}, "half precision in the engine's tensors"),
        (inspected("Float"), "fp32", {"fp32": 29, "fp16": 1}, "half precision in the parsed network"),
        (inspected("Half"), "fp16", {"fp32": 30}, "found no fp16 in the parsed network"),
        (inspected("Float"), "fp16", {"fp32": 8, "fp16": 30}, "found no fp16 in the engine's weights"),
        ({"fp32": 9}, "fp16", {"fp32": 8, "fp16": 30}, "found no fp16 in the engine's tensors"),
        ({"layers": 9, "unknown": 9}, "fp32", {}, "neither network nor inspector names a type"),
        ({"layers": 9, "unknown": 9}, "fp16", {}, "neither network nor inspector names a type"),
    ],
)
def test_engine_of_another_precision_is_refused(
    types: dict[str, int], precision: str, network_types: dict[str, int], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        require_precision(types, precision, network_types=network_types, source="x")  # type: ignore[arg-type]


def test_engine_whose_types_are_named_needs_no_other_proof() -> None:
    assert require_precision({"fp32": 9}, "fp32", network_types={}, source="x") == ("engine's tensors: 9 layers",)
    assert require_precision({"fp32": 2, "fp16": 9}, "fp16", network_types={}, source="x")
