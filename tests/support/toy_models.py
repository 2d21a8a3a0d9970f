"""Tiny networks whose answers are known, as Triton model repository entries."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ctseg.arrays import Logits, Patches
from ctseg.model_spec import Channel, IntensityProperties, Label, ModelSpec, SplineResampling, Tensor
from ctseg.recipe import Recipe
from ctseg.serving.publish import EntryDraft, publish
from ctseg.serving.recipe_entry import publish_recipe
from ctseg.triton.configuration import ModelConfig, text_from_config

PATCH = (6, 10, 14)
WEIGHTS = np.array([[1.0, 0.0], [-2.0, 0.5], [0.25, 3.0]], np.float32)
"""(heads, channels) of the 1 x 1 x 1 convolution that the toy network is."""


SECOND_WEIGHTS = np.hstack([-WEIGHTS, [[0, 0], [3, 0], [0, 4]]]).astype(np.float32)
"""(heads, channels): the two images, and a channel for each label of the first stage."""


def toy_spec(name: str = "toy", **changes: Any) -> ModelSpec:
    intensity = IntensityProperties(mean=0, std=1, percentile_00_5=-1, percentile_99_5=1)
    fields: dict[str, Any] = {
        "name": name,
        "configuration": "3d_fullres",
        "channels": tuple(
            Channel(name=channel, normalization="CTNormalization", intensity=intensity) for channel in ("CT", "PET")
        ),
        "reader": "SimpleITKIO",
        "file_ending": ".nii.gz",
        "transpose_forward": (0, 1, 2),
        "spacing_mm": (3.0, 1.0, 1.0),
        "patch_size": PATCH,
        "resampling_data": SplineResampling(order=3),
        "resampling_logits": SplineResampling(order=1),
        "labels": tuple(Label(name=label, values=(i,)) for i, label in enumerate(("background", "liver", "tumour"))),
        "mirroring": "none",
        "output": Tensor(name="logits"),
        "max_batch_size": 4,
    }
    return ModelSpec.validated({**fields, **changes}, source="toy")


def toy_logits(patches: Patches, weights: np.ndarray = WEIGHTS) -> Logits:
    """What the toy network answers, in float64 rounded to float32."""
    return np.einsum("hc,bczyx->bhzyx", weights.astype(np.float64), patches).astype(np.float32)


def toy_patches(batch: int, seed: int = 0) -> Patches:
    return np.random.default_rng(seed).standard_normal((batch, 2, *PATCH), dtype=np.float32)


def toy_votes(patches: Patches) -> np.ndarray:
    """How the folds of the toy network vote, where it has any: all three for what is above nothing, the others none."""
    return np.where(toy_logits(patches) > 0, 3, 0).astype(np.uint8)


def save_toy_network(path: Path, *, half: bool = False, weights: np.ndarray = WEIGHTS, votes: bool = False) -> Path:
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    values = weights.astype(np.float16 if half else np.float32).reshape(*weights.shape, 1, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weights"], ["logits"])],
        "toy",
        [helper.make_tensor_value_info("input", kind, ["batch", weights.shape[1], *PATCH])],
        [helper.make_tensor_value_info("logits", kind, ["batch", weights.shape[0], *PATCH])],
        [numpy_helper.from_array(values, "weights")],
    )
    if votes:
        graph.initializer.extend(
            numpy_helper.from_array(np.array(value, values.dtype), name) for name, value in (("nothing", 0), ("all", 3))
        )
        graph.node.extend([
            helper.make_node("Greater", ["logits", "nothing"], ["above"]),
            helper.make_node("Cast", ["above"], ["one"], to=kind),
            helper.make_node("Mul", ["one", "all"], ["counted"]),
            helper.make_node("Cast", ["counted"], ["votes"], to=TensorProto.UINT8),
        ])  # fmt: skip
        graph.output.append(
            helper.make_tensor_value_info("votes", TensorProto.UINT8, ["batch", weights.shape[0], *PATCH])
        )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def write_toy_entry(repository: Path, spec: ModelSpec | None = None, version: int = 1, **options: Any) -> ModelSpec:
    spec = spec or toy_spec()
    network = save_toy_network(
        repository.parent / "toy.onnx", half=spec.output.dtype == "FP16", votes=spec.votes is not None
    )
    publish(repository, EntryDraft(spec=spec, backend="python", model_file=network, **options), version)
    return spec


def write_cascade(repository: Path) -> tuple[ModelSpec, ModelSpec]:
    """Write the two stages of a cascade, ``first`` and ``second``, and the recipe of ``both``."""
    first = write_toy_entry(repository, toy_spec("first"))
    previous = {
        "model": "first",
        "digest": first.digest,
        "labels": [1, 2],
        "resampling": {"function": "resample_data_or_seg_to_shape"},
    }
    second = toy_spec("second", previous_stage=previous, spacing_mm=(3.0, 0.8, 0.8))
    network = save_toy_network(repository.parent / "second.onnx", weights=SECOND_WEIGHTS)
    publish(repository, EntryDraft(spec=second, backend="python", model_file=network, whole_scans=True), 1)
    members = [{"model": spec.name, "digest": spec.digest} for spec in (first, second)]
    step = {"kind": "cascade", "previous": "first", "model": "second"}
    publish_recipe(repository, Recipe.model_validate({"name": "both", "members": members, "step": step}))
    return first, second


def write_foreign_entry(
    repository: Path, name: str, code: str, *, parameters: dict[str, str] | None = None, heads: int = 3
) -> None:
    """Write an entry by hand whose python model runs ``code`` with ``patches`` (NumPy) for each request."""
    config = ModelConfig(name=name, backend="python", max_batch_size=4)
    config.input.add(name="input", data_type="TYPE_FP32", dims=[2, *PATCH])
    config.output.add(name="logits", data_type="TYPE_FP32", dims=[heads, *PATCH])
    config.instance_group.add(count=1, kind="KIND_CPU")
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_from_config(config))
    body = "\n".join(f"        {line}" for line in code.splitlines())
    (folder / "1" / "model.py").write_text(
        f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(np.from_dlpack(pb_utils.get_input_tensor_by_name(r, "input"))) for r in requests]

    def respond(self, array):
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("logits", np.ascontiguousarray(array))])

    def logits(self, patches):
        weights = np.array({WEIGHTS.tolist()}, np.float32)
        return np.einsum("hc,bczyx->bhzyx", weights, patches).astype(np.float32)

    def answer(self, patches):
{body}
"""
    )
