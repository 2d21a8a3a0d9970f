"""The contract: round trip, digest, and a refusal for everything unknown or contradictory."""

import json
from pathlib import Path

import pytest

from ctseg.errors import SpecError
from ctseg.model_spec import MAX_SPEC_BYTES, KeepLargest, ModelSpec, Parity, Provenance
from ctseg.nnunet.plans import resolve_configuration, spec_from_plans
from tests.support.nnunet_plans import make_dataset, make_plans
from tests.support.toy_models import toy_spec

REPOSITORY = Path(__file__).parents[1] / "model_repository"


def make_spec(**extra):
    return spec_from_plans(make_plans(), make_dataset(), "3d_fullres", name="m", mirror_axes=(0, 1, 2), **extra)


def edited(**changes) -> str:
    raw = json.loads(make_spec().to_json())
    raw.update(changes)
    return json.dumps(raw)


def test_json_round_trip_gives_the_same_spec_and_digest():
    spec = make_spec(postprocessing=(KeepLargest(labels=(1,)),))
    again = ModelSpec.from_json(spec.to_json(), source="test")
    assert again == spec
    assert again.digest == spec.digest


def test_what_proved_a_network_is_said_and_older_specs_do_not_say_it():
    proven = Parity(state="proven", proven_with=("phantom",), graph_proven_with=("scans", "phantom"))
    assert proven.summary == "proven with phantom (its graph with scans and phantom)"
    assert Parity(state="proven", proven_with=("scans",), graph_proven_with=("scans",)).summary == "proven with scans"
    assert Parity(state="unproven", proven_with=("phantom",)).summary == "unproven"
    said = json.loads((REPOSITORY / "sarcoma" / "ctseg.json").read_bytes())
    spec = ModelSpec.from_json(json.dumps(said), source="sarcoma")
    assert spec.parity.summary == "proven with scans and phantom"
    del said["parity"]["proven_with"], said["parity"]["graph_proven_with"]
    older = ModelSpec.from_json(json.dumps(said), source="sarcoma")
    assert (older.parity.proven_with, older.parity.summary, older.digest) == ((), "proven", spec.digest)


def test_json_is_ascii_and_canonical():
    text = make_spec(provenance=Provenance(dataset="Größe")).to_json()
    assert text.isascii()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("composition", "aadfbc3da1de7d874749f238cd9aba10a9eabd587a3ccdf51d514e619dfc7346"),
        ("sarcoma", "0f1217f66c8ac4e4c6021e45c60ca71fe596feccd18669d1bb9928e7b1724178"),
    ],
)
def test_the_demos_specs_keep_their_digest_for_good(name, digest):
    spec = ModelSpec.from_json((REPOSITORY / name / "ctseg.json").read_bytes(), source=name)
    assert spec.digest == digest


def test_digest_covers_what_the_labels_depend_on_and_nothing_else():
    spec = make_spec()
    assert make_spec(provenance=Provenance(dataset="other"), parity=Parity(state="proven")).digest == spec.digest
    assert make_spec(network_sha256="0" * 64).digest != spec.digest
    assert make_spec(max_batch_size=1).digest != spec.digest
    assert make_spec(postprocessing=(KeepLargest(labels=(1,)),)).digest != spec.digest


@pytest.mark.parametrize(("dtype", "item_bytes"), [("FP32", 4), ("FP16", 2), ("BF16", 2)])
def test_bytes_on_the_wire(dtype: str, item_bytes: int):
    spec = toy_spec(input={"name": "input", "dtype": dtype}, output={"name": "logits", "dtype": dtype})
    assert spec.input.item_bytes == spec.output.item_bytes == item_bytes
    assert spec.patch_bytes == 2 * (6 * 10 * 14) * item_bytes  # two channels
    assert spec.logits_bytes == 3 * (6 * 10 * 14) * item_bytes  # three heads
    flat = toy_spec(patch_size=(10, 14), spacing_mm=(1.0, 1.0), input={"name": "input", "dtype": dtype})
    assert flat.patch_bytes == 2 * (10 * 14) * item_bytes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema_version": 3}, "schema_version 3 is unknown"),
        ({"schema_version": "1"}, "schema_version '1' is unknown"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"reader": "Tiff3DIO"}, "reader: Input should be 'SimpleITKIO'"),
        ({"resampling_data": {"function": "resample_torch_simple"}}, "resampling_data"),
        ({"resampling_logits": {"function": "resample_data_or_seg_to_shape", "order": 2}}, "order"),
        ({"transpose_forward": [0, 0, 1]}, "expected a permutation"),
        ({"spacing_mm": [1.0, 0.0, 1.0]}, "expected positive numbers"),
        ({"spacing_mm": [1.0, 1.0]}, "differ in dimensions"),
        ({"mirror_axes": [3]}, "are not axes of the patch"),
        ({"mirror_axes": [0, 0]}, "are not axes of the patch"),
        ({"name": "../../etc"}, "name"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"network_sha256": "xyz"}, "network_sha256"),
        ({"labels": [{"name": "background", "values": [0]}, {"name": "b", "values": [2]}]}, "expected labels 0, 1, 2"),
        ({"labels": []}, "labels"),
        ({"ignore_label": 1}, "ignore label 1 is also"),
        ({"regions_class_order": [1]}, "2 regions need as many"),
        ({"postprocessing": [{"kind": "keep_largest", "labels": [7]}]}, "postprocessing names labels [7]"),
        ({"postprocessing": [{"kind": "dilate", "labels": [1]}]}, "postprocessing"),
        ({"spacing_mm": [1.0, 1.0, float("nan")]}, "spacing_mm"),
    ],
)
def test_refusals_name_the_field_and_what_was_found(changes, told):
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(edited(**changes), source="gpu1:8001/m")
    assert told in str(caught.value)
    assert str(caught.value).startswith("gpu1:8001/m: ")


def test_all_problems_are_told_at_once():
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(edited(reader="x", max_batch_size=0, colour="red"), source="f")
    assert all(word in str(caught.value) for word in ("reader", "max_batch_size", "colour"))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "x" * (MAX_SPEC_BYTES + 1)])
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(SpecError, match=r"^f: "):
        ModelSpec.from_json(text, source="f")


PREVIOUS = {
    "model": "m_lowres",
    "digest": "0" * 64,
    "labels": [1, 3],
    "resampling": {"function": "resample_data_or_seg_to_shape", "order": 1, "order_z": 0},
}


def test_what_version_1_could_only_name_is_refused():
    for changes in ({"previous_stage": "3d_lowres"}, {"ensemble": ["2d", "3d_fullres"]}):
        with pytest.raises(
            SpecError, match="f: this spec of a cascade's second stage, or of an ensemble, does not say"
        ):
            ModelSpec.from_json(edited(**changes), source="f")
    with pytest.raises(SpecError, match="f: votes: not a field of schema_version 1"):
        ModelSpec.from_json(edited(votes={"folds": 5}), source="f")


def test_the_oldest_version_is_written_that_says_all():
    spec = make_spec()
    raw = json.loads(spec.to_json())
    assert (raw["schema_version"], raw["previous_stage"], raw["ensemble"]) == (1, None, [])
    assert not set(raw) & {"votes", "presentation"}
    for changes in ({"votes": {"folds": 5}}, {"presentation": {"tumor": {"colour": [255, 0, 0]}}}):
        newer = ModelSpec.validated({**spec.model_dump(mode="json"), **changes}, source="f")
        assert json.loads(newer.to_json())["schema_version"] == 2
        assert ModelSpec.from_json(newer.to_json(), source="f") == newer


def test_what_version_2_added_enters_the_digest_where_it_changes_answers():
    spec = make_spec()

    def changed(**changes) -> ModelSpec:
        return ModelSpec.validated({**spec.model_dump(mode="json"), **changes}, source="f")

    assert changed(presentation={"tumor": {"display_name": "Tumour"}}).digest == spec.digest
    assert changed(votes={"folds": 5}).digest != spec.digest
    cascade = changed(previous_stage=PREVIOUS)
    assert cascade.digest != spec.digest
    assert cascade.num_input_channels == len(spec.channels) + 2
    assert cascade.patch_bytes == 3 * spec.patch_bytes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": [3, 1]}, "previous_stage.labels"),
        ({"labels": [0, 1]}, "expected foreground values in ascending order"),
        ({"digest": "0"}, "previous_stage.digest"),
        ({"resampling": {**PREVIOUS["resampling"], "ties": "last"}}, "ties"),
        ({"resampling": {**PREVIOUS["resampling"], "order": 3}}, "order"),
        ({"resampling": {**PREVIOUS["resampling"], "seg_tiebreak": "x"}}, "seg_tiebreak: Extra inputs"),
    ],
)
def test_a_previous_stage_is_refused_where_it_is_not_understood(changes, told):
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(edited(schema_version=2, ensemble=None, previous_stage={**PREVIOUS, **changes}), source="f")
    assert told in str(caught.value)


def test_the_second_stage_of_a_cascade_names_its_first_stage_and_takes_label_values():
    plans = make_plans()
    plans["configurations"]["3d_lowres"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    dataset = make_dataset({"background": 0, "whole": [1, 2, 3], "core": [3], "ignore": 4}, regions_class_order=[1, 2])

    def spec(configuration: str, **extra) -> ModelSpec:
        return spec_from_plans(plans, dataset, configuration, name=configuration, mirror_axes=None, **extra)

    lowres = spec("3d_lowres")
    previous = spec("3d_cascade_fullres", first_stage=lowres).previous_stage
    assert (previous.model, previous.digest, previous.labels) == ("3d_lowres", lowres.digest, (1, 2, 3))
    assert previous.resampling.model_dump() == {
        "function": "resample_data_or_seg_to_shape", "order": 1, "order_z": 0, "force_separate_z": None,
        "separate_z_anisotropy_threshold": 3.0, "ties": "argmax",
    }  # fmt: skip
    for extra, found in (({}, "nothing"), ({"first_stage": spec("3d_fullres")}, "3d_fullres")):
        with pytest.raises(SpecError, match=f"needs its first stage, 3d_lowres, found {found}"):
            spec("3d_cascade_fullres", **extra)


def test_a_spec_of_118_labels_with_codes_fits_where_specs_travel():
    labels = {"background": 0} | {f"costal_cartilages_and_more_{i:03d}": i for i in range(1, 119)}
    spec = spec_from_plans(make_plans(), make_dataset(labels), "3d_fullres", name="m", mirror_axes=(0, 1, 2))
    code = {"value": "1234567", "scheme": "SCT", "meaning": "Intervertebral disc of thoracic vertebra"}
    presentation = {
        label.name: {
            "display_name": label.name,
            "category": code,
            "type": code,
            "modifier": code,
            "region": code,
            "colour": [255, 255, 255],
            "training_volumes_ml": [1234.56, 1234.56, 1234.56],
        }
        for label in spec.labels[1:]
    }
    full = ModelSpec.validated({**spec.model_dump(mode="json"), "presentation": presentation}, source="f")
    assert ModelSpec.from_json(full.to_json(), source="f") == full


def test_regions_write_their_class_order_and_keep_the_order_of_the_heads():
    dataset = make_dataset(
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3, "ignore": 4}, regions_class_order=[1, 2, 3]
    )
    spec = spec_from_plans(make_plans(), dataset, "3d_fullres", name="m", mirror_axes=None)
    assert [label.name for label in spec.labels] == ["whole", "core", "active"]
    assert spec.written_values == (1, 2, 3)
    assert spec.num_heads == 3
    assert spec.ignore_label == 4
    assert spec.named_values == {"whole": (1, 2, 3), "core": (2, 3), "active": (3,)}
    assert spec.mirroring == "none"


def test_postprocessing_may_name_a_label_of_a_region_that_is_never_written():
    dataset = make_dataset({"background": 0, "whole": [1, 2, 3], "core": 3}, regions_class_order=[1, 3])
    steps = (KeepLargest(labels=(1, 2, 3)),)
    spec = spec_from_plans(make_plans(), dataset, "3d_fullres", name="m", mirror_axes=None, postprocessing=steps)
    assert spec.written_values == (1, 3)
    assert spec.postprocessing == steps


def test_labels_are_ordered_by_value_and_not_by_name():
    dataset = make_dataset({"tumor": 2, "background": 0, "liver": 1})
    spec = spec_from_plans(make_plans(), dataset, "3d_fullres", name="m", mirror_axes=())
    assert [label.name for label in spec.labels] == ["background", "liver", "tumor"]
    assert spec.mirroring == "none"


def test_a_configuration_inherits_and_overrides():
    plans = make_plans()
    plans["configurations"]["big"] = {"inherits_from": "3d_fullres", "patch_size": [32, 64, 64]}
    spec = spec_from_plans(plans, make_dataset(), "big", name="m", mirror_axes=(0,))
    assert spec.patch_size == (32, 64, 64)
    assert spec.spacing_mm == (3.0, 2.0, 2.0)
    assert spec.configuration == "big"


def test_inheritance_that_ends_nowhere_is_told():
    with pytest.raises(SpecError, match="a -> b -> a"):
        resolve_configuration({"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}, "a")
    with pytest.raises(SpecError, match="no configuration '2d'"):
        spec_from_plans(make_plans(), make_dataset(), "2d", name="m", mirror_axes=())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label_manager": "Mine"}, "label manager 'Mine'"),
        ({"image_reader_writer": "NaturalImage2DIO"}, "reader"),
        ({"foreground_intensity_properties_per_channel": {}}, "KeyError"),
        ({"transpose_forward": None}, "transpose_forward"),
    ],
)
def test_foreign_plans_are_refused(change, told):
    with pytest.raises(SpecError, match=told):
        spec_from_plans({**make_plans(), **change}, make_dataset(), "3d_fullres", name="m", mirror_axes=())


def test_resamplers_keyword_arguments_that_change_nothing_are_dropped_and_unknown_ones_refused():
    torch_kwargs = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
    plans = make_plans(resampling_data=("resample_torch_fornnunet", torch_kwargs))
    spec = spec_from_plans(plans, make_dataset(), "3d_fullres", name="m", mirror_axes=())
    assert spec.resampling_data.function == "resample_torch_fornnunet"
    plans = make_plans(resampling_data=("resample_torch_fornnunet", {**torch_kwargs, "antialias": True}))
    with pytest.raises(SpecError, match="antialias"):
        spec_from_plans(plans, make_dataset(), "3d_fullres", name="m", mirror_axes=())


def test_spacing_of_a_2d_network_keeps_the_distance_of_the_slices():
    plans = make_plans(configuration="2d", patch_size=(32, 48), spacing=(0.8, 0.9))
    spec = spec_from_plans(plans, make_dataset(), "2d", name="m", mirror_axes=(0, 1))
    assert spec.is_2d
    assert spec.spacing_of_network((5.0, 0.7, 0.7)) == (5.0, 0.8, 0.9)
    assert spec.transpose_backward == (0, 1, 2)
