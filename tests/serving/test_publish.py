"""Publishing a version: what stands on disk, what is refused, and that nothing is half-written."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.errors import OutputError, SpecError
from ctseg.model_spec import KeepLargest, Label, ModelSpec
from ctseg.serving.entries import list_entries, list_models, next_version, read_entry
from ctseg.serving.publish import EntryDraft, PlanDraft, add_plan, publish
from ctseg.triton.configuration import config_from_text, text_from_config
from tests.support.toy_models import PATCH, save_toy_network, toy_spec, write_toy_entry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def config_of(root: Path, name: str = "toy"):
    path = root / name / "config.pbtxt"
    return config_from_text(path.read_text(), source=str(path))


def test_an_entry_says_in_tritons_own_message_what_the_spec_says(root: Path) -> None:
    spec = write_toy_entry(root, instance_count=2, max_queue_delay_us=1500, threads=3, warmup=True)
    config = config_of(root)
    assert (config.name, config.backend, config.max_batch_size) == ("toy", "python", 4)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("input", 11, [2, *PATCH])]
    outputs = [(t.name, t.data_type, list(t.dims)) for t in config.output]
    assert outputs == [("logits", 11, [3, *PATCH]), ("ctseg_request", 9, [1])]  # 9 is TYPE_INT64
    assert config.version_policy.latest.num_versions == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, 2)]  # 2 is KIND_CPU
    assert [(sample.batch_size, list(sample.inputs["input"].dims)) for sample in config.model_warmup] == [
        (1, [2, *PATCH]),
        (4, [2, *PATCH]),
    ]
    assert config.parameters["ctseg_threads"].string_value == "3"
    assert ModelSpec.from_json(config.parameters["ctseg_spec.1"].string_value, source="test") == spec
    assert ModelSpec.from_json((root / "toy" / "ctseg.json").read_text(), source="test") == spec
    assert sorted(path.name for path in (root / "toy" / "1").iterdir()) == ["build.json", "model.onnx", "model.py"]


def test_an_entry_for_a_gpu_says_so_for_its_version_and_its_instances(root: Path) -> None:
    write_toy_entry(root, device="gpu")
    config = config_of(root)
    assert config.instance_group[0].kind == 1  # KIND_GPU
    assert config.parameters["ctseg_device.1"].string_value == "gpu"
    publish(root, EntryDraft(toy_spec(), "python", root / "toy" / "1" / "model.onnx"), 2)
    config = config_of(root)
    assert config.instance_group[0].kind == 2  # KIND_CPU
    assert config.parameters["ctseg_device.1"].string_value == "gpu"
    assert "ctseg_device.2" not in config.parameters


def test_what_was_written_is_what_is_read(root: Path) -> None:
    spec = write_toy_entry(root, build_info={"gpu": "none", "seconds": 1.5})
    (entry,) = list_entries(root)
    assert (entry.name, entry.backend, entry.newest.version) == ("toy", "python", 1)
    assert entry.newest.spec.digest == spec.digest
    assert entry.newest.build == {"gpu": "none", "seconds": 1.5}


def test_labels_that_are_not_ascii_survive_the_configuration(root: Path) -> None:
    labels = (
        {"name": "background", "values": (0,)},
        {"name": 'Höhle "A"\\n', "values": (1,)},
        {"name": "肝", "values": (2,)},
    )
    write_toy_entry(root, toy_spec(labels=labels))
    assert (root / "toy" / "config.pbtxt").read_bytes().isascii()
    assert [label.name for label in read_entry(root / "toy").newest.spec.labels] == ["background", 'Höhle "A"\\n', "肝"]


def test_each_version_keeps_its_own_spec_and_runtime(root: Path) -> None:
    first = write_toy_entry(root)
    second = toy_spec(postprocessing=(KeepLargest(labels=(1, 2)),), max_batch_size=2)
    assert next_version(root, "toy") == 2
    write_toy_entry(root, second, 2, runtime="openvino", precision_hint="bf16")
    entry = read_entry(root / "toy")
    assert [(item.version, item.spec.digest) for item in entry.versions] == [(1, first.digest), (2, second.digest)]
    config = config_of(root)
    assert config.max_batch_size == 2
    assert config.parameters["ctseg_runtime.1"].string_value == "onnxruntime"
    assert config.parameters["ctseg_runtime.2"].string_value == "openvino"
    assert config.parameters["ctseg_precision_hint.2"].string_value == "bf16"
    assert json.loads((root / "toy" / "ctseg.json").read_text())["max_batch_size"] == 2


def test_answers_name_their_request_only_where_every_version_can(root: Path) -> None:
    write_toy_entry(root)
    write_toy_entry(root, version=2)
    assert [t.name for t in config_of(root).output] == ["logits", "ctseg_request"]
    config = config_of(root)
    del config.output[1]  # as an older ctseg wrote it, whose model.py knows of no such output
    (root / "toy" / "config.pbtxt").write_text(text_from_config(config))
    write_toy_entry(root, version=3)
    assert [t.name for t in config_of(root).output] == ["logits"]


def test_a_version_that_was_deleted_leaves_the_configuration_at_the_next_write(root: Path) -> None:
    for version in (1, 2):
        write_toy_entry(root, version=version)
    shutil.rmtree(root / "toy" / "1")
    write_toy_entry(root, version=3)
    specs = [key for key in config_of(root).parameters if key.startswith("ctseg_spec.")]
    assert sorted(specs) == ["ctseg_spec.2", "ctseg_spec.3"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"labels": tuple(Label(name=n, values=(i,)) for i, n in enumerate(("background", "tumour", "liver")))},
            "labels",
        ),
        ({"patch_size": (6, 10, 12)}, "patch_size"),
        ({"output": {"name": "other"}}, "output"),
        ({"input": {"name": "input", "dtype": "FP16"}}, "input"),
    ],
)
def test_another_contract_under_the_same_name_is_refused(root: Path, changes: dict, what: str) -> None:
    write_toy_entry(root)
    before = (root / "toy" / "config.pbtxt").read_bytes()
    with pytest.raises(SpecError, match=rf"toy: version 1 .* has {what} .*another model name"):
        write_toy_entry(root, toy_spec(**changes), 2)
    assert (root / "toy" / "config.pbtxt").read_bytes() == before
    assert not (root / "toy" / "2").exists()


@pytest.mark.parametrize("votes", [None, {"folds": 3}])
def test_versions_of_a_model_have_votes_all_of_them_or_none(root: Path, votes: object) -> None:
    write_toy_entry(root, toy_spec(votes=votes))
    other, told = ({"folds": 2}, "without them") if votes is None else (None, "with them")
    with pytest.raises(SpecError, match=rf"all versions of a model answer alike: export it again {told}"):
        write_toy_entry(root, toy_spec(votes=other), version=2)
    write_toy_entry(root, toy_spec(votes=votes and {"folds": 5}), version=2)
    outputs = [line for line in (root / "toy" / "config.pbtxt").read_text().splitlines() if "TYPE_UINT8" in line]
    assert len(outputs) == (0 if votes is None else 1)


def test_a_version_is_never_replaced(root: Path) -> None:
    write_toy_entry(root)
    with pytest.raises(SpecError, match="version 1 exists"):
        write_toy_entry(root)


def test_another_backend_under_the_same_name_is_refused(root: Path, tmp_path: Path) -> None:
    write_toy_entry(root)
    with pytest.raises(SpecError, match=r"python backend.*not of onnxruntime"):
        publish(root, EntryDraft(toy_spec(), "onnxruntime", tmp_path / "toy.onnx"), 2)


def test_a_spec_that_triton_cannot_carry_is_refused(root: Path) -> None:
    names = ["background", *(f"{i:05d}" * 12 for i in range(4000))]
    labels = tuple(Label(name=name, values=(i,)) for i, name in enumerate(names))
    with pytest.raises(SpecError, match="at most 262144"):
        write_toy_entry(root, toy_spec(labels=labels))
    assert not (root / "toy").exists()


def test_onnxruntime_and_tensorrt_entries_have_tritons_own_file_names(root: Path, tmp_path: Path) -> None:
    network = save_toy_network(tmp_path / "x.onnx")
    publish(root, EntryDraft(toy_spec("ort"), "onnxruntime", network), 1)
    publish(root, EntryDraft(toy_spec("trt"), "tensorrt", network), 1)
    assert config_of(root, "ort").backend == "onnxruntime"
    assert (root / "ort" / "1" / "model.onnx").is_file()
    assert config_of(root, "trt").platform == "tensorrt_plan"
    assert (root / "trt" / "1" / "model.plan").is_file()
    assert config_of(root, "trt").instance_group[0].kind == 1  # KIND_GPU
    assert [entry.backend for entry in list_entries(root)] == ["onnxruntime", "tensorrt"]


def test_plans_for_several_gpu_types_stand_side_by_side(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(b"sm90")
    (tmp_path / "b.plan").write_bytes(b"sm89")
    publish(root, EntryDraft(toy_spec(), "tensorrt", tmp_path / "a.plan", compute_capability="9.0"), 1)
    add_plan(root, "toy", 1, PlanDraft(tmp_path / "b.plan", "8.9", build_info={"gpu": "L40S"}))
    assert dict(config_of(root).cc_model_filenames) == {"9.0": "model_sm90.plan", "8.9": "model_sm89.plan"}
    assert (root / "toy" / "1" / "model_sm89.plan").read_bytes() == b"sm89"
    assert json.loads((root / "toy" / "1" / "build_sm89.json").read_text()) == {"gpu": "L40S"}


def test_a_failed_write_leaves_nothing_where_a_server_looks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_entry(root, toy_spec("other"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctseg.serving.publish.bring_to_disk", fail)
    with pytest.raises(OutputError, match=r"toy: cannot write into .*No space left"):
        write_toy_entry(root)
    assert list_models(root) == ["other"]
    assert not list(root.parent.glob(".ctseg-staging-*"))


WRITER_THAT_STOPS = """
import sys, time
from pathlib import Path
from ctseg.serving import publish
from tests.support.toy_models import toy_spec

def stop(folder):
    print("half-written", flush=True)
    time.sleep(600)

where, network, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
setattr(publish, moment, stop if moment == "bring_to_disk" else lambda *_: stop(None))
publish.publish(where, publish.EntryDraft(toy_spec(), "python", network), int(sys.argv[4]))
"""


@pytest.mark.parametrize("moment", ["bring_to_disk", "write_head"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_writer_that_is_killed_leaves_nothing_where_a_server_looks(
    root: Path, tmp_path: Path, moment: str, version: int
) -> None:
    write_toy_entry(root, toy_spec("other"))
    if version == 2:
        write_toy_entry(root)
    known = sorted(root.rglob("*"))
    network = save_toy_network(tmp_path / "toy.onnx")
    command = [sys.executable, "-c", WRITER_THAT_STOPS, str(root), str(network), moment, str(version)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half-written\n"
        assert list(root.parent.glob(".ctseg-staging-*"))
        writer.kill()
    assert sorted(root.rglob("*")) == known
    write_toy_entry(root, version=version)  # the lock has gone with its holder
    assert [item.version for item in list_entries(root)[-1].versions] == list(range(1, version + 1))
    assert not list(root.parent.glob(".ctseg-staging-*"))


def test_the_rest_of_a_killed_writer_goes_with_the_next_write(root: Path) -> None:
    stale = root.parent / ".ctseg-staging-models-dead"
    stale.mkdir()
    write_toy_entry(root)
    assert not stale.exists()


def _write(root: Path, version: int) -> None:
    publish(root, EntryDraft(toy_spec(), "python", root.parent / "toy.onnx"), version)


def test_several_writers_take_turns(root: Path) -> None:
    write_toy_entry(root)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(root, version)) for version in (2, 3, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [item.version for item in read_entry(root / "toy").versions] == [1, 2, 3, 4]
