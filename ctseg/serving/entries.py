"""Model repository entries, read strictly.

``<name>/config.pbtxt`` belongs to the model, not to a version; its ``parameters`` hold the spec of every
version on disk under ``ctseg_spec.<version>``, so that the spec reaches each client with no file.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctseg.errors import SetupError, SpecError
from ctseg.files.folders import why_no_folder
from ctseg.model_spec import ModelSpec
from ctseg.predict.whole_scan import scan_entry
from ctseg.recipe import Recipe
from ctseg.triton.configuration import (
    REQUEST_OUTPUT,
    ModelConfig,
    config_from_text,
    recipe_parameter,
    recipe_parameters,
    scan_parameter,
    scan_parameters,
    spec_parameter,
)

Backend = Literal["python", "onnxruntime", "tensorrt"]

CONFIG_NAME = "config.pbtxt"
BUILD_NAME = "build.json"
DATA_FILES_KEY = "data_files"
"""In ``build.json``: the files beside the model file that keep weights of it, and their sizes in bytes."""
MODEL_NAMES: Mapping[str, str] = {"python": "model.onnx", "onnxruntime": "model.onnx", "tensorrt": "model.plan"}
WITHOUT_VOTES_NAME = "model.without_votes.onnx"
"""What the python backend's ONNX Runtime runs until somebody asks for votes, where ``model.onnx`` has some."""
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
TENSORRT_PLATFORM = "tensorrt_plan"
"""How Triton calls the TensorRT backend in a configuration."""


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


def read_entry(folder: Path) -> Entry:
    """Read and check one model of a repository.

    Args:
        folder: ``<repository>/<name>``.

    Raises:
        SpecError: Not an entry that ctseg wrote, or one whose parts do not fit together.
    """
    config = read_config(folder)
    name = folder.name
    if config.name != name:
        raise SpecError(f"{folder}: {CONFIG_NAME} is of a model named {config.name!r}, expected {name!r}")
    backend = _backend_of(config, folder)
    numbers = versions_on_disk(folder)
    if not numbers:
        raise SpecError(f"{folder}: no version folder (1, 2, …): build the entry again")
    return Entry(
        name=name,
        folder=folder,
        backend=backend,
        versions=tuple(_read_version(folder, config, backend, number) for number in numbers),
    )


def read_spec(folder: Path, version: int | None = None) -> ModelSpec | None:
    """Read the spec that a model's configuration carries, whoever wrote the rest.

    Args:
        folder: ``<repository>/<name>``.
        version: Of the model; None takes the newest on disk.

    Returns:
        None where it carries none for this version.

    Raises:
        SpecError: The configuration cannot be read, or the spec is foreign.
    """
    config = read_config(folder)
    number = version or max(versions_on_disk(folder), default=0)
    key = spec_parameter(number)
    if key not in config.parameters:
        return None
    source = f"{folder.name} version {number} in {folder / CONFIG_NAME}"
    return ModelSpec.from_json(config.parameters[key].string_value, source=source)


def read_recipe(folder: Path, version: int | None = None) -> tuple[Recipe, int] | None:
    """Read the recipe that a repository's entry carries, with its version.

    Args:
        folder: ``<repository>/<name>``.
        version: Of the recipe; None takes the newest on disk.

    Returns:
        None where the entry is a model.

    Raises:
        SpecError: The configuration cannot be read, or the recipe is foreign.
    """
    config = read_config(folder)
    number = version or max(versions_on_disk(folder), default=0)
    key = recipe_parameter(number)
    if key not in config.parameters:
        return None
    source = f"{folder.name} version {number} in {folder / CONFIG_NAME}"
    return Recipe.from_json(config.parameters[key].string_value, source=source), number


@dataclass(frozen=True)
class RecipeEntry:
    """A recipe of a repository.

    Attributes:
        name: Of the recipe, and of its folder.
        folder: ``<repository>/<name>``.
        recipe: The newest version.
        version: Its number.
    """

    name: str
    folder: Path
    recipe: Recipe
    version: int


def list_recipes(repository: Path) -> list[RecipeEntry]:
    """Read every recipe of a repository, in order of their names.

    Raises:
        SetupError: No such folder, or nothing in it.
        SpecError: One cannot be read.
    """
    found = [(repository / name, read_recipe(repository / name)) for name in list_models(repository)]
    return [RecipeEntry(folder.name, folder, *recipe) for folder, recipe in found if recipe is not None]


def member_versions(repository: Path, recipe: Recipe) -> Mapping[str, EntryVersion]:
    """Return the version of each member that a recipe names by its spec, the newest where several have it.

    Args:
        repository: Folder of the repository.
        recipe: One of its recipes, or one to be.

    Raises:
        SpecError: A member is not there, no version of it has the spec, or the recipe does not fit its members.
    """
    found = {}
    for member in recipe.members:
        folder = repository / member.model
        if not (folder / CONFIG_NAME).is_file():
            raise SpecError(f"{recipe.name}: its member {member.model} is not in {repository}: build it there first")
        entry = read_entry(folder)
        having = [item for item in entry.versions if item.spec.digest == member.digest]
        found[member.model] = having[-1] if having else entry.newest
    recipe.check({name: item.spec for name, item in found.items()})
    return found


def list_entries(repository: Path) -> list[Entry]:
    """Read and check every model of a repository, in order of their names.

    Recipes, and entries for whole scans, are left out.

    Raises:
        SetupError: No such folder, or nothing in it.
        SpecError: See :func:`read_entry`.
    """
    return [read_entry(repository / name) for name in list_models(repository) if not takes_scans(repository / name)]


def scan_versions(repository: Path, model: str) -> list[int]:
    """Return the versions of the entry that takes whole scans for a model; none where there is no such entry.

    Raises:
        SpecError: Its configuration cannot be read.
    """
    folder = repository / scan_entry(model)
    if not (folder / CONFIG_NAME).is_file():
        return []
    parameters = read_config(folder).parameters
    return [number for number in versions_on_disk(folder) if scan_parameter(number) in parameters]


def is_recipe(folder: Path) -> bool:
    """Whether an entry, ``<repository>/<name>``, is a recipe and no model.

    Raises:
        SpecError: Its configuration cannot be read.
    """
    return bool(recipe_parameters(read_config(folder)))


def takes_scans(folder: Path) -> bool:
    """Whether an entry, ``<repository>/<name>``, takes whole scans, or stands for several models, and no patches.

    Raises:
        SpecError: Its configuration cannot be read.
    """
    config = read_config(folder)
    return bool(scan_parameters(config) or recipe_parameters(config))


def list_models(repository: Path) -> list[str]:
    """Return the names of the models of a repository, whoever wrote them, without checking them.

    Raises:
        SetupError: No such folder, or nothing in it.
    """
    if not repository.is_dir():
        raise SetupError(
            f"model repository {repository}: {why_no_folder(repository)}: write an entry with `ctseg build`"
        )
    names = sorted(path.parent.name for path in repository.glob(f"*/{CONFIG_NAME}") if path.parent.name[0] != ".")
    if not names:
        raise SetupError(f"model repository {repository} holds no model: write an entry with `ctseg build`")
    return names


def require_model_name(name: str) -> None:
    """Refuse what is no name of a model: it names a folder of the repository, and no other place.

    Raises:
        SetupError: It is not made of ASCII letters, digits, ``_``, ``.``, ``+`` and ``-``, or is longer than 128, or
            begins with one of the last three.
    """
    if not _MODEL_NAME.fullmatch(name):
        raise SetupError(
            f"{name[:100]!r} is no name of a model: expected letters, digits, _ . + and -, such as ct_total; it is the "
            "name of a folder in the model repository",
            settings=("model",),
        )


def next_version(repository: Path, name: str) -> int:
    """Return the number after the newest version of a model, 1 for a model that is not there."""
    return max(versions_on_disk(repository / name), default=0) + 1


def versions_on_disk(folder: Path) -> list[int]:
    """Return the version folders of a model as Triton takes them: positive numbers without leading zeros."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"[1-9]\d*", path.name))


def read_config(folder: Path) -> Any:
    """Read the configuration of a model, whoever wrote it.

    Args:
        folder: ``<repository>/<name>``.

    Returns:
        Triton's message, see :data:`ctseg.triton.configuration.ModelConfig`.

    Raises:
        SpecError: It cannot be read.
    """
    path = folder / CONFIG_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    return config_from_text(text, source=str(path))


def data_files_of(build: Any, source: str) -> Mapping[str, int]:
    """Return the files beside a model file that keep weights of it, and their sizes in bytes; none for most.

    Args:
        build: Content of ``build.json``, which may be anything.
        source: Where it comes from, for messages.

    Raises:
        SpecError: It is no mapping, or names something that is no plain file in the version's own folder.
    """
    files = build.get(DATA_FILES_KEY, {}) if isinstance(build, Mapping) else None
    if not isinstance(files, Mapping) or not all(map(_is_plain_name, files)):
        raise SpecError(
            f"{source}: {BUILD_NAME} is not what a build writes, or its {DATA_FILES_KEY} are no names of files beside "
            "it: build the entry again"
        )
    return files


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def add_tensors(config: Any, spec: ModelSpec) -> None:
    """Write the input and the outputs of a spec into a configuration."""
    config.input.add(
        name=spec.input.name, data_type=f"TYPE_{spec.input.dtype}", dims=[spec.num_input_channels, *spec.patch_size]
    )
    config.output.add(
        name=spec.output.name, data_type=f"TYPE_{spec.output.dtype}", dims=[spec.num_heads, *spec.patch_size]
    )
    if spec.votes is not None:
        config.output.add(name=spec.votes.name, data_type="TYPE_UINT8", dims=[spec.num_heads, *spec.patch_size])


def _backend_of(config: Any, folder: Path) -> Backend:
    if config.platform == TENSORRT_PLATFORM or config.backend == "tensorrt":
        return "tensorrt"
    if config.backend == "python":
        return "python"
    if config.backend == "onnxruntime":
        return "onnxruntime"
    raise SpecError(f"{folder}: backend {config.backend!r} is none that ctseg writes")


def _read_version(folder: Path, config: Any, backend: Backend, number: int) -> EntryVersion:
    source = f"{folder.name} version {number}"
    key = spec_parameter(number)
    if key not in config.parameters:
        raise SpecError(f"{source}: {folder / CONFIG_NAME} has no parameter {key}: build the entry with `ctseg build`")
    spec = ModelSpec.from_json(config.parameters[key].string_value, source=f"{source} in {folder / CONFIG_NAME}")
    if spec.name != folder.name:
        raise SpecError(f"{source}: its spec is of a model named {spec.name!r}: build the entry under that name")
    _check_tensors(config, spec, source)
    version_folder = folder / str(number)
    _check_files(version_folder, config, backend, source)
    try:
        build = json.loads((version_folder / BUILD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{source}: {version_folder / BUILD_NAME} cannot be read: {error}") from error
    _check_data_files(version_folder, build, source)
    return EntryVersion(version=number, folder=version_folder, spec=spec, build=build)


def _check_tensors(config: Any, spec: ModelSpec, source: str) -> None:
    expected = ModelConfig()
    add_tensors(expected, spec)
    outputs = [tensor for tensor in config.output if tensor.name != REQUEST_OUTPUT]
    for what, wanted, found in (
        ("input", list(expected.input), list(config.input)),
        ("output", list(expected.output), outputs),
    ):
        if found != wanted:
            told = " and ".join(map(_tensor_text, wanted))
            raise SpecError(
                f"{source}: the spec expects the {what} {told}, {CONFIG_NAME} has "
                f"{[_tensor_text(tensor) for tensor in found]}: build the entry again"
            )
    if not 1 <= config.max_batch_size <= spec.max_batch_size:
        raise SpecError(
            f"{source}: the spec allows batches of {spec.max_batch_size}, {CONFIG_NAME} has max_batch_size "
            f"{config.max_batch_size}: build the entry again"
        )


def _check_files(version_folder: Path, config: Any, backend: Backend, source: str) -> None:
    plans = dict(config.cc_model_filenames) or {"": MODEL_NAMES[backend]}
    if not any((version_folder / file_name).is_file() for file_name in plans.values()):
        raise SpecError(f"{source}: none of {sorted(plans.values())} in {version_folder}: build the entry again")
    if backend == "python" and not (version_folder / "model.py").is_file():
        raise SpecError(f"{source}: model.py is missing in {version_folder}: build the entry again")


def _check_data_files(version_folder: Path, build: Any, source: str) -> None:
    for name, size in data_files_of(build, source).items():
        file = version_folder / name
        found = file.stat().st_size if file.is_file() else "no such file"
        if found != size:
            raise SpecError(
                f"{source}: expected {size} bytes of weights in {file}, found {found}: build the entry again"
            )


def _tensor_text(tensor: Any) -> str:
    types = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return f"{tensor.name} {types[tensor.data_type].name} {list(tensor.dims)}"
