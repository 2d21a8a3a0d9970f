"""A model version into a Triton model repository: drafted, checked, put together aside, then published at once.

Configurations are written through Triton's own protobuf message.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ctseg.errors import SetupError, SpecError
from ctseg.files.atomic import bring_to_disk
from ctseg.model_spec import MAX_SPEC_BYTES, ModelSpec
from ctseg.predict.whole_scan import require_usable_name
from ctseg.serving.entries import (
    BUILD_NAME,
    DATA_FILES_KEY,
    MODEL_NAMES,
    TENSORRT_PLATFORM,
    Backend,
    Entry,
    add_tensors,
    read_config,
    read_entry,
)
from ctseg.serving.scan_entry import require_room_for_scans, write_scan_entry
from ctseg.serving.writing import pretty_json, staging, write_head, writing
from ctseg.triton.configuration import (
    REQUEST_OUTPUT,
    THREADS_PARAMETER,
    ModelConfig,
    device_parameter,
    names_requests,
    precision_hint_parameter,
    runtime_parameter,
    spec_parameter,
)

Runtime = Literal["onnxruntime", "openvino"]
Device = Literal["cpu", "gpu"]
InstanceKind = Literal["cpu", "gpu", "auto"]

PYTHON_MODEL = Path(__file__).parent / "python_backend" / "model.py"
_INSTANCE_KINDS: Mapping[Backend, InstanceKind] = {"tensorrt": "gpu", "onnxruntime": "auto"}
VERSIONS_SERVED = 2


@dataclass(frozen=True)
class EntryDraft:
    """A model version that is not in a repository yet.

    Attributes:
        spec: What the version needs of its clients; ``spec.name`` is the model's name.
        backend: Triton's backend. ``python`` runs ``model.onnx`` by ``runtime``.
        model_file: ONNX file, or TensorRT plan; copied.
        data_files: Files that keep weights of the model file, in its folder; copied beside it under their own names,
            which stand in it.
        runtime: What the python backend runs the network with.
        precision_hint: OpenVINO's inference precision (``f32``, ``bf16``); empty for f32.
        device: Where the python backend runs it; on a GPU only ONNX Runtime does.
        instance_count: Instances of the model (on each GPU, where it runs on GPUs).
        instance_kind: Where they run; by default ``device`` for python, ``gpu`` for tensorrt, else ``auto``.
        threads: CPU threads of one instance of the python backend; 0 shares the CPUs among them.
        max_queue_delay_us: How long Triton may hold a request to join it with others, in microseconds.
        warmup: Let Triton run one batch of random patches before the model is ready.
        compute_capability: For a plan: the GPU's, such as ``9.0``; the plan is then taken on such GPUs only,
            and :func:`add_plan` adds those for others.
        parameters: Further ``parameters`` of the configuration.
        build_info: Content of ``build.json``.
        documents: Further text files of the version's folder, by name.
        whole_scans: Whether the entry that takes whole scans is written beside it.
    """

    spec: ModelSpec
    backend: Backend
    model_file: Path
    data_files: tuple[Path, ...] = ()
    runtime: Runtime = "onnxruntime"
    precision_hint: str = ""
    device: Device = "cpu"
    instance_count: int = 1
    instance_kind: InstanceKind | None = None
    threads: int = 0
    max_queue_delay_us: int = 2000
    warmup: bool = False
    compute_capability: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    build_info: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    whole_scans: bool = False

    @property
    def file_name(self) -> str:
        """Name of the model file in the version's folder."""
        if self.backend == "tensorrt" and self.compute_capability:
            return _plan_name(self.compute_capability)
        return MODEL_NAMES[self.backend]


@dataclass(frozen=True)
class PlanDraft:
    """A TensorRT plan for another GPU type, of a version that was built for one.

    Attributes:
        plan: The plan; copied.
        compute_capability: The GPU's, such as ``8.9``.
        build_info: Content of ``build_sm89.json`` beside the plan.
        documents: Further text files of the version's folder, by name.
    """

    plan: Path
    compute_capability: str
    build_info: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)


def publish(repository: Path, draft: EntryDraft, version: int) -> Entry:
    """Write a model version into a Triton model repository.

    A server that watches the repository never sees half an entry: a new model appears by one rename;
    a new version of a known model by one rename too, after the configuration that carries its spec.
    Several writers take turns (file lock).

    Args:
        repository: Folder of the repository; made if it is missing.
        draft: What is written.
        version: A version that is not on disk yet (see :func:`ctseg.serving.entries.next_version`).

    Returns:
        The entry as it is now on disk.

    Raises:
        SpecError: The spec is too large; the model's name is in use for other tensors, channels, labels or
            another backend, or is that of an entry for whole scans (take a new name); or the version exists.
        SetupError: The model file is missing, or another writer holds the lock for ten minutes.
        OutputError: The repository cannot be written; nothing half-written is left.
    """
    if version < 1:
        raise ValueError(f"version {version} is not a positive number")
    if not draft.model_file.is_file():
        raise SetupError(f"{draft.spec.name}: model file {draft.model_file} is missing")
    require_usable_name(draft.spec.name)
    folder = repository / draft.spec.name
    with writing(repository, draft.spec.name):
        known = read_entry(folder) if folder.exists() else None
        check_fits(draft, version, known)
        if draft.whole_scans:
            require_room_for_scans(repository, draft.spec.name)
        config = configuration(draft, version, known)
        with staging(repository) as staged:
            version_folder = stage(draft, staged / str(version))
            if known is None:
                write_head(staged, config, draft.spec)
                staged.rename(folder)
            else:
                newest = draft.spec if version > known.newest.version else known.newest.spec
                write_head(folder, config, newest)
                version_folder.rename(folder / str(version))
        entry = read_entry(folder)
        if draft.whole_scans:
            write_scan_entry(repository, entry)
    return entry


def check_fits(draft: EntryDraft, version: int, known: Entry | None) -> None:
    """Refuse a draft that Triton cannot carry, or that is another model than the one of its name.

    Args:
        draft: What is to be written.
        version: Its version.
        known: The model of that name in the repository; None where there is none.

    Raises:
        SpecError: It does not fit.
    """
    spec = draft.spec
    if len(spec.to_json()) > MAX_SPEC_BYTES:
        raise SpecError(
            f"{spec.name}: the spec has {len(spec.to_json())} bytes, Triton carries at most {MAX_SPEC_BYTES}"
        )
    if known is None:
        return
    if version in [item.version for item in known.versions]:
        raise SpecError(f"{spec.name}: version {version} exists in {known.folder}: take the next number")
    if draft.backend != known.backend:
        raise SpecError(
            f"{spec.name}: {known.folder} is an entry of Triton's {known.backend} backend, which all versions of a "
            f"model share, not of {draft.backend}: take another model name"
        )
    old = known.newest.spec
    for what, found, wanted in (
        ("channels", [channel.name for channel in old.channels], [channel.name for channel in spec.channels]),
        ("patch_size", old.patch_size, spec.patch_size),
        ("labels", old.named_values, spec.named_values),
        ("heads", [label.name for label in old.labels], [label.name for label in spec.labels]),
        ("regions_class_order", old.regions_class_order, spec.regions_class_order),
        ("input", old.input, spec.input),
        ("output", old.output, spec.output),
    ):
        if found != wanted:
            raise SpecError(
                f"{spec.name}: version {known.newest.version} in {known.folder} has {what} {found}, "
                f"version {version} would have {wanted}: take another model name"
            )
    if (old.votes is None) != (spec.votes is None):
        has, would_have, how = ("none", "some", "without") if old.votes is None else ("some", "none", "with")
        raise SpecError(
            f"{spec.name}: votes of folds: version {known.newest.version} in {known.folder} has {has}, version "
            f"{version} would have {would_have}; all versions of a model answer alike: export it again {how} them, "
            "or take another model name"
        )


def configuration(draft: EntryDraft, version: int, known: Entry | None) -> Any:
    """Return Triton's configuration of a model with a draft as one of its versions.

    Args:
        draft: What is to be written.
        version: Its version.
        known: The model of that name in the repository; None where there is none. What its configuration says of
            its versions on disk is kept.
    """
    old = ModelConfig() if known is None else read_config(known.folder)
    specs = {} if known is None else {item.version: item.spec for item in known.versions}
    # one limit for all versions; each version's own network takes at least as much
    batch_limit = min(spec.max_batch_size for spec in [*specs.values(), draft.spec])
    config = ModelConfig(name=draft.spec.name, max_batch_size=batch_limit)
    if draft.backend == "tensorrt":
        config.platform = TENSORRT_PLATFORM
    else:
        config.backend = draft.backend
    config.version_policy.latest.num_versions = VERSIONS_SERVED
    config.dynamic_batching.max_queue_delay_microseconds = draft.max_queue_delay_us
    kind = draft.instance_kind or _INSTANCE_KINDS.get(draft.backend, draft.device)
    config.instance_group.add(count=draft.instance_count, kind=f"KIND_{kind.upper()}")
    add_tensors(config, draft.spec)
    if draft.backend == "python" and (not specs or names_requests(old)):  # versions of an older ctseg cannot
        config.output.add(name=REQUEST_OUTPUT, data_type="TYPE_INT64", dims=[1])
    if draft.warmup:
        _add_warmup(config)
    if draft.backend == "tensorrt" and draft.compute_capability:
        config.cc_model_filenames[draft.compute_capability] = draft.file_name
        config.cc_model_filenames.update(old.cc_model_filenames)
    if draft.backend != "python":
        config.default_model_filename = draft.file_name
    for number, spec in {**specs, version: draft.spec}.items():
        config.parameters[spec_parameter(number)].string_value = spec.to_json()
    if draft.backend == "python":
        kept = {key: old.parameters[key].string_value for key in _runtime_parameters(specs) if key in old.parameters}
        for key, value in {**kept, **_runtime_of(draft, version)}.items():
            config.parameters[key].string_value = value
    for key, value in draft.parameters.items():
        config.parameters[key].string_value = value
    return config


def stage(draft: EntryDraft, folder: Path) -> Path:
    """Put the files of a version into a new folder, and bring them to the disk; return the folder."""
    folder.mkdir()
    shutil.copyfile(draft.model_file, folder / draft.file_name)
    for file in draft.data_files:
        shutil.copyfile(file, folder / file.name)
    if draft.backend == "python":
        shutil.copyfile(PYTHON_MODEL, folder / "model.py")
    info = dict(draft.build_info)
    if draft.data_files:
        info[DATA_FILES_KEY] = {file.name: (folder / file.name).stat().st_size for file in draft.data_files}
    _write_documents(folder, {BUILD_NAME: pretty_json(info), **draft.documents})
    bring_to_disk(folder)
    return folder


def add_plan(repository: Path, name: str, version: int, draft: PlanDraft) -> Entry:
    """Add the TensorRT plan for another GPU type to a version that was built for one.

    Args:
        repository: Folder of the repository.
        name: Name of the model.
        version: A version on disk whose first plan was written with its compute capability.
        draft: The plan. One that is there for the same compute capability is replaced.

    Returns:
        The entry as it is now on disk.

    Raises:
        SpecError: No such version, or it is no TensorRT entry with plans per compute capability.
        OutputError: The repository cannot be written.
    """
    folder = repository / name
    with writing(repository, name):
        entry = read_entry(folder)
        config = read_config(folder)
        if version not in [item.version for item in entry.versions]:
            raise SpecError(f"{name}: no version {version} in {folder}")
        if not config.cc_model_filenames:
            raise SpecError(f"{name}: {folder} has no plan that is bound to a compute capability: build it again")
        plan_name = _plan_name(draft.compute_capability)
        build_name = plan_name.replace("model", "build").replace(".plan", ".json")
        with staging(repository) as staged:
            shutil.copyfile(draft.plan, staged / plan_name)
            _write_documents(staged, {build_name: pretty_json(draft.build_info), **draft.documents})
            bring_to_disk(staged)
            for path in sorted(staged.iterdir()):
                path.replace(folder / str(version) / path.name)
        config.cc_model_filenames[draft.compute_capability] = plan_name
        write_head(folder, config, entry.newest.spec)
    return read_entry(folder)


def _add_warmup(config: Any) -> None:
    for batch in sorted({1, config.max_batch_size}):
        sample = config.model_warmup.add(name=f"batch_{batch}", batch_size=batch)
        tensor = sample.inputs[config.input[0].name]
        tensor.data_type = config.input[0].data_type
        tensor.dims.extend(config.input[0].dims)
        tensor.random_data = True


def _runtime_parameters(versions: Iterable[int]) -> list[str]:
    """Return the parameters that say what versions run with: each keeps the runtime that it was proven with."""
    return [
        name(number) for number in versions for name in (runtime_parameter, precision_hint_parameter, device_parameter)
    ]


def _runtime_of(draft: EntryDraft, version: int) -> dict[str, str]:
    """Return the parameters that say what the python backend runs a version with."""
    said = {
        runtime_parameter(version): draft.runtime,
        precision_hint_parameter(version): draft.precision_hint,
        device_parameter(version): "" if draft.device == "cpu" else draft.device,
        THREADS_PARAMETER: str(draft.threads or ""),
    }
    return {key: value for key, value in said.items() if value}


def _write_documents(folder: Path, documents: Mapping[str, str]) -> None:
    for name, text in documents.items():
        (folder / name).write_text(text, encoding="utf-8")


def _plan_name(compute_capability: str) -> str:
    if not re.fullmatch(r"\d+\.\d", compute_capability):
        raise ValueError(f"compute capability {compute_capability!r} is not of the form 9.0")
    return f"model_sm{compute_capability.replace('.', '')}.plan"
