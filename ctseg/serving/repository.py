"""Triton model repository entries: written whole, through Triton's own protobuf message, and read strictly.

``<name>/config.pbtxt`` belongs to the model, not to a version; its ``parameters`` hold the spec of every
version on disk under ``ctseg_spec.<version>``, so that the spec reaches each client with no file.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from filelock import FileLock, Timeout

from ctseg.errors import OutputError, SetupError, SpecError
from ctseg.model_spec import MAX_SPEC_BYTES, ModelSpec
from ctseg.triton.configuration import (
    THREADS_PARAMETER,
    ModelConfig,
    config_from_text,
    precision_hint_parameter,
    runtime_parameter,
    spec_parameter,
    text_from_config,
)

Backend = Literal["python", "onnxruntime", "tensorrt"]
Runtime = Literal["onnxruntime", "openvino"]
InstanceKind = Literal["auto", "cpu", "gpu"]

CONFIG_NAME = "config.pbtxt"
SPEC_NAME = "ctseg.json"
BUILD_NAME = "build.json"
MODEL_NAMES: Mapping[str, str] = {"python": "model.onnx", "onnxruntime": "model.onnx", "tensorrt": "model.plan"}
PYTHON_MODEL = Path(__file__).parent / "python_backend" / "model.py"
_LOCK_NAME = ".ctseg.lock"
_LOCK_TIMEOUT_S = 600.0
_VERSIONS_SERVED = 2
_PLATFORM_OF_TENSORRT = "tensorrt_plan"


@dataclass(frozen=True)
class EntryVersion:
    """One version of a model on disk.

    Attributes:
        version: Triton's version number.
        folder: ``<repository>/<name>/<version>``.
        spec: The spec that travels with this version.
        build: What ``build.json`` says.
    """

    version: int
    folder: Path
    spec: ModelSpec
    build: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A model of a repository.

    Attributes:
        name: Name of the model, and of its folder.
        folder: ``<repository>/<name>``.
        backend: What runs it.
        versions: Its versions on disk, oldest first; at least one.
    """

    name: str
    folder: Path
    backend: Backend
    versions: tuple[EntryVersion, ...]

    @property
    def newest(self) -> EntryVersion:
        """The version with the highest number."""
        return self.versions[-1]


def require_writable(repository: Path, name: str) -> None:
    """Refuse, before any work, a repository that a version cannot be written into; makes nothing.

    Raises:
        OutputError: It is no folder, or may not be written.
    """
    there = next(path for path in (repository, *repository.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: cannot write into {repository}: {there} is read-only, or no folder")


def next_version(repository: Path, name: str) -> int:
    """Return the number after the newest version of a model, 1 for a model that is not there."""
    return max(_versions_on_disk(repository / name), default=0) + 1


def write_entry(
    repository: Path,
    spec: ModelSpec,
    version: int,
    *,
    backend: Backend,
    model_file: Path,
    runtime: Runtime = "onnxruntime",
    precision_hint: str = "",
    instance_count: int = 1,
    instance_kind: InstanceKind | None = None,
    threads: int = 0,
    max_queue_delay_us: int = 2000,
    warmup: bool = False,
    compute_capability: str = "",
    parameters: Mapping[str, str] | None = None,
    build_info: Mapping[str, Any] | None = None,
    documents: Mapping[str, str] | None = None,
) -> Entry:
    """Write a model version into a Triton model repository.

    A server that watches the repository never sees half an entry: a new model appears by one rename;
    a new version of a known model by one rename too, after the configuration that carries its spec.
    Several writers take turns (file lock).

    Args:
        repository: Folder of the repository; made if it is missing.
        spec: What the version needs of its clients; ``spec.name`` is the model's name.
        version: A version that is not on disk yet (see :func:`next_version`).
        backend: Triton's backend. ``python`` runs ``model.onnx`` by ``runtime``.
        model_file: ONNX file, or TensorRT plan; copied.
        runtime: What the python backend runs the network with.
        precision_hint: OpenVINO's inference precision (``f32``, ``bf16``); empty for f32.
        instance_count: Instances of the model (on each GPU, where it runs on GPUs).
        instance_kind: Where they run; by default ``cpu`` for python, ``gpu`` for tensorrt, else ``auto``.
        threads: CPU threads of one instance of the python backend; 0 shares the CPUs among them.
        max_queue_delay_us: How long Triton may hold a request to join it with others, in microseconds.
        warmup: Let Triton run one batch of random patches before the model is ready.
        compute_capability: For a plan: the GPU's, such as ``9.0``; the plan is then taken on such GPUs only,
            and :func:`add_plan` adds those for others.
        parameters: Further ``parameters`` of the configuration.
        build_info: Content of ``build.json``.
        documents: Further text files of the version's folder, by name.

    Returns:
        The entry as it is now on disk.

    Raises:
        SpecError: The spec is too large; the model's name is in use for other tensors, channels, labels or
            another backend (take a new name); or the version exists.
        SetupError: ``model_file`` is missing, or another writer holds the lock for ten minutes.
        OutputError: The repository cannot be written; nothing half-written is left.
    """
    if version < 1:
        raise ValueError(f"version {version} is not a positive number")
    if not model_file.is_file():
        raise SetupError(f"{spec.name}: model file {model_file} is missing")
    if len(spec.to_json()) > MAX_SPEC_BYTES:
        raise SpecError(
            f"{spec.name}: the spec has {len(spec.to_json())} bytes, Triton carries at most {MAX_SPEC_BYTES}"
        )
    folder = repository / spec.name
    with _writing(repository, spec.name):
        known = read_entry(folder) if folder.exists() else None
        if known is not None:
            _check_same_model(known, spec, version, backend)
        versions = {} if known is None else {item.version: item.spec for item in known.versions}
        old_parameters = {} if known is None else dict(_read_config(folder).parameters)
        # one limit for all versions; each version's own network takes at least as much
        batch_limit = min(item.max_batch_size for item in [*versions.values(), spec])
        config = ModelConfig(name=spec.name, max_batch_size=batch_limit)
        if backend == "tensorrt":
            config.platform = _PLATFORM_OF_TENSORRT
        else:
            config.backend = backend
        config.version_policy.latest.num_versions = _VERSIONS_SERVED
        config.dynamic_batching.max_queue_delay_microseconds = max_queue_delay_us
        kind = instance_kind or {"python": "cpu", "tensorrt": "gpu", "onnxruntime": "auto"}[backend]
        config.instance_group.add(count=instance_count, kind=f"KIND_{kind.upper()}")
        _fill_tensors(config, spec)
        if warmup:
            _fill_warmup(config)
        file_name = MODEL_NAMES[backend]
        if backend == "tensorrt" and compute_capability:
            file_name = _plan_name(compute_capability)
            config.cc_model_filenames[compute_capability] = file_name
            if known is not None:
                config.cc_model_filenames.update(_read_config(folder).cc_model_filenames)
        if backend != "python":
            config.default_model_filename = file_name
        for number, its_spec in {**versions, version: spec}.items():
            config.parameters[spec_parameter(number)].string_value = its_spec.to_json()
        if backend == "python":
            for number in versions:  # each version keeps the runtime that it was proven with
                for key in (runtime_parameter(number), precision_hint_parameter(number)):
                    if key in old_parameters:
                        config.parameters[key].string_value = old_parameters[key].string_value
            config.parameters[runtime_parameter(version)].string_value = runtime
            if precision_hint:
                config.parameters[precision_hint_parameter(version)].string_value = precision_hint
            if threads:
                config.parameters[THREADS_PARAMETER].string_value = str(threads)
        for key, value in (parameters or {}).items():
            config.parameters[key].string_value = value
        with _staging(repository) as staging:
            version_folder = staging / str(version)
            version_folder.mkdir()
            shutil.copyfile(model_file, version_folder / file_name)
            if backend == "python":
                shutil.copyfile(PYTHON_MODEL, version_folder / "model.py")
            for document, text in {BUILD_NAME: _pretty(build_info or {}), **(documents or {})}.items():
                (version_folder / document).write_text(text, encoding="utf-8")
            _sync(version_folder)
            if known is None:
                _write_head(staging, config, spec)
                staging.rename(folder)
            else:
                newest = max([*versions, version])
                _write_head(folder, config, {**versions, version: spec}[newest])
                version_folder.rename(folder / str(version))
    return read_entry(folder)


def add_plan(
    repository: Path,
    name: str,
    version: int,
    *,
    plan: Path,
    compute_capability: str,
    build_info: Mapping[str, Any],
    documents: Mapping[str, str] | None = None,
) -> Entry:
    """Add the TensorRT plan for another GPU type to a version that was built for one.

    Args:
        repository: Folder of the repository.
        name: Name of the model.
        version: A version on disk whose first plan was written with its compute capability.
        plan: The plan; copied. One that is there for the same compute capability is replaced.
        compute_capability: The GPU's, such as ``8.9``.
        build_info: Content of ``build_sm89.json`` beside the plan.
        documents: Further text files of the version's folder, by name.

    Returns:
        The entry as it is now on disk.

    Raises:
        SpecError: No such version, or it is no TensorRT entry with plans per compute capability.
        OutputError: The repository cannot be written.
    """
    folder = repository / name
    with _writing(repository, name):
        entry = read_entry(folder)
        config = _read_config(folder)
        if version not in [item.version for item in entry.versions]:
            raise SpecError(f"{name}: no version {version} in {folder}")
        if not config.cc_model_filenames:
            raise SpecError(f"{name}: {folder} has no plan that is bound to a compute capability: build it again")
        plan_name = _plan_name(compute_capability)
        build_name = plan_name.replace("model", "build").replace(".plan", ".json")
        with _staging(repository) as staging:
            shutil.copyfile(plan, staging / plan_name)
            for document, text in {build_name: _pretty(build_info), **(documents or {})}.items():
                (staging / document).write_text(text, encoding="utf-8")
            _sync(staging)
            for path in sorted(staging.iterdir()):
                path.replace(folder / str(version) / path.name)
        config.cc_model_filenames[compute_capability] = plan_name
        _write_head(folder, config, entry.newest.spec)
    return read_entry(folder)


def remove_versions(repository: Path, name: str, versions: Collection[int]) -> None:
    """Remove versions of a model: their folders at once, then what the configuration says of them.

    Raises:
        ValueError: No version would be left.
        SetupError: Another writer holds the repository.
        OutputError: The repository cannot be written.
    """
    folder = repository / name
    with _writing(repository, name):
        config = _read_config(folder)
        if not set(_versions_on_disk(folder)) - set(versions):
            raise ValueError(f"{name}: versions {sorted(versions)} are all that there are")
        with _staging(repository) as staging:
            for number in versions:
                (folder / str(number)).rename(staging / str(number))
                for key in (spec_parameter(number), runtime_parameter(number), precision_hint_parameter(number)):
                    config.parameters.pop(key, None)
            _write_head(folder, config, read_entry(folder).newest.spec)


def remove_leftovers(repository: Path) -> None:
    """Remove what killed writers have left.

    Raises:
        SetupError: Another writer holds the repository.
        OutputError: The repository cannot be written.
    """
    with _writing(repository, "leftovers"), _staging(repository):
        pass


def read_entry(folder: Path) -> Entry:
    """Read and check one model of a repository.

    Args:
        folder: ``<repository>/<name>``.

    Raises:
        SpecError: Not an entry that ctseg wrote, or one whose parts do not fit together.
    """
    config = _read_config(folder)
    name = folder.name
    if config.name != name:
        raise SpecError(f"{folder}: {CONFIG_NAME} is of a model named {config.name!r}, expected {name!r}")
    backend = _backend_of(config, folder)
    numbers = _versions_on_disk(folder)
    if not numbers:
        raise SpecError(f"{folder}: no version folder (1, 2, …): build the entry again")
    return Entry(
        name=name,
        folder=folder,
        backend=backend,
        versions=tuple(_read_version(folder, config, backend, number) for number in numbers),
    )


def list_entries(repository: Path) -> list[Entry]:
    """Read and check every model of a repository, in order of their names.

    Raises:
        SetupError: No such folder, or nothing in it.
        SpecError: See :func:`read_entry`.
    """
    return [read_entry(repository / name) for name in list_models(repository)]


def list_models(repository: Path) -> list[str]:
    """Return the names of the models of a repository, whoever wrote them, without checking them.

    Raises:
        SetupError: No such folder, or nothing in it.
    """
    if not repository.is_dir():
        raise SetupError(f"model repository {repository} is not a folder: write an entry with `ctseg build`")
    names = sorted(path.parent.name for path in repository.glob(f"*/{CONFIG_NAME}") if path.parent.name[0] != ".")
    if not names:
        raise SetupError(f"model repository {repository} holds no model: write an entry with `ctseg build`")
    return names


def _read_version(folder: Path, config: Any, backend: Backend, number: int) -> EntryVersion:
    source = f"{folder.name} version {number}"
    key = spec_parameter(number)
    if key not in config.parameters:
        raise SpecError(f"{source}: {folder / CONFIG_NAME} has no parameter {key}: build the entry with `ctseg build`")
    spec = ModelSpec.from_json(config.parameters[key].string_value, source=f"{source} in {folder / CONFIG_NAME}")
    if spec.name != folder.name:
        raise SpecError(f"{source}: its spec is of a model named {spec.name!r}: build the entry under that name")
    expected = ModelConfig()
    _fill_tensors(expected, spec)
    for what, wanted, found in (
        ("input", expected.input[0], list(config.input)),
        ("output", expected.output[0], list(config.output)),
    ):
        if found != [wanted]:
            raise SpecError(
                f"{source}: the spec expects the {what} {_tensor_text(wanted)}, {CONFIG_NAME} has "
                f"{[_tensor_text(tensor) for tensor in found]}: build the entry again"
            )
    if not 1 <= config.max_batch_size <= spec.max_batch_size:
        raise SpecError(
            f"{source}: the spec allows batches of {spec.max_batch_size}, {CONFIG_NAME} has max_batch_size "
            f"{config.max_batch_size}: build the entry again"
        )
    version_folder = folder / str(number)
    plans = dict(config.cc_model_filenames) or {"": MODEL_NAMES[backend]}
    if not any((version_folder / file_name).is_file() for file_name in plans.values()):
        raise SpecError(f"{source}: none of {sorted(plans.values())} in {version_folder}: build the entry again")
    if backend == "python" and not (version_folder / "model.py").is_file():
        raise SpecError(f"{source}: model.py is missing in {version_folder}: build the entry again")
    try:
        build = json.loads((version_folder / BUILD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{source}: {version_folder / BUILD_NAME} cannot be read: {error}") from error
    return EntryVersion(version=number, folder=version_folder, spec=spec, build=build)


def _check_same_model(known: Entry, spec: ModelSpec, version: int, backend: Backend) -> None:
    if version in [item.version for item in known.versions]:
        raise SpecError(f"{spec.name}: version {version} exists in {known.folder}: take the next number")
    if backend != known.backend:
        raise SpecError(
            f"{spec.name}: {known.folder} is an entry of Triton's {known.backend} backend, which all versions of a "
            f"model share, not of {backend}: take another model name"
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


def _fill_tensors(config: Any, spec: ModelSpec) -> None:
    config.input.add(
        name=spec.input.name, data_type=f"TYPE_{spec.input.dtype}", dims=[len(spec.channels), *spec.patch_size]
    )
    config.output.add(
        name=spec.output.name, data_type=f"TYPE_{spec.output.dtype}", dims=[spec.num_heads, *spec.patch_size]
    )


def _fill_warmup(config: Any) -> None:
    for batch in sorted({1, config.max_batch_size}):
        sample = config.model_warmup.add(name=f"batch_{batch}", batch_size=batch)
        tensor = sample.inputs[config.input[0].name]
        tensor.data_type = config.input[0].data_type
        tensor.dims.extend(config.input[0].dims)
        tensor.random_data = True


def _tensor_text(tensor: Any) -> str:
    types = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return f"{tensor.name} {types[tensor.data_type].name} {list(tensor.dims)}"


def _plan_name(compute_capability: str) -> str:
    if not re.fullmatch(r"\d+\.\d", compute_capability):
        raise ValueError(f"compute capability {compute_capability!r} is not of the form 9.0")
    return f"model_sm{compute_capability.replace('.', '')}.plan"


def _backend_of(config: Any, folder: Path) -> Backend:
    if config.platform == _PLATFORM_OF_TENSORRT or config.backend == "tensorrt":
        return "tensorrt"
    if config.backend == "python":
        return "python"
    if config.backend == "onnxruntime":
        return "onnxruntime"
    raise SpecError(f"{folder}: backend {config.backend!r} is none that ctseg writes")


def _read_config(folder: Path) -> Any:
    path = folder / CONFIG_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    return config_from_text(text, source=str(path))


def _versions_on_disk(folder: Path) -> list[int]:
    """The version folders as Triton takes them: positive numbers without leading zeros."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"[1-9]\d*", path.name))


def _write_head(folder: Path, config: Any, newest: ModelSpec) -> None:
    for name, text in ((SPEC_NAME, _pretty(json.loads(newest.to_json()))), (CONFIG_NAME, text_from_config(config))):
        temporary = folder / f".{name}.{os.getpid()}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)


def _pretty(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _sync(folder: Path) -> None:
    """Put the files of a folder on disk before a name points at them."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _writing(repository: Path, name: str) -> Iterator[None]:
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with FileLock(repository / _LOCK_NAME, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise SetupError(
            f"{name}: another process has held {repository / _LOCK_NAME} for {_LOCK_TIMEOUT_S:.0f} s: try again later"
        ) from error
    except OSError as error:
        raise OutputError(f"{name}: cannot write into {repository}: {error}") from error


@contextlib.contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """Yield a folder on the repository's file system where no server looks for models or versions.

    Triton takes every folder of the repository for a model, and loads a model again whenever anything
    in its folder changes. The parts are therefore put together beside the repository, where that is
    the same file system and may be written; else in a hidden folder, which a watching server reports
    and passes over.
    """
    beside = repository.absolute().parent
    parent = beside if _can_rename_between(beside, repository) else repository
    prefix = f".ctseg-staging-{repository.name}-"
    for stale in parent.glob(f"{prefix}*"):  # a killed writer's: this one holds the lock
        shutil.rmtree(stale, ignore_errors=True)
    with _sigterm_as_exit():
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            staging.chmod(0o755)
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does; only here, for a compiler at work would not let it through."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (the signature of a handler)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _can_rename_between(parent: Path, repository: Path) -> bool:
    return os.access(parent, os.W_OK) and parent.stat().st_dev == repository.stat().st_dev
