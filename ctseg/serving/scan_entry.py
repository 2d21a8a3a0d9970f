"""The entry for whole scans beside a model's own: written after the network, removed before it."""

from pathlib import Path

from ctseg.errors import SpecError
from ctseg.files import atomic
from ctseg.files.atomic import bring_to_disk
from ctseg.predict.contract import ScanContract, contract_of
from ctseg.predict.whole_scan import (
    LABELS,
    LABELS_DEFLATED,
    PREVIOUS_LABELS,
    PROTOCOL,
    REPORT,
    SCAN_SUFFIX,
    SPACING,
    VOXELS_FP32,
    VOXELS_INT16,
    scan_entry,
)
from ctseg.serving.entries import BUILD_NAME, CONFIG_NAME, Entry, read_config, read_entry, versions_on_disk
from ctseg.serving.writing import pretty_json, staging, writing
from ctseg.triton.configuration import ModelConfig, scan_parameter, scan_parameters, text_from_config

SCAN_MODEL = Path(__file__).parent / "python_backend" / "scan.py"


def require_room_for_scans(repository: Path, model: str) -> None:
    """Refuse a model beside which its entry for whole scans cannot be written.

    Raises:
        SpecError: Another model has its name.
    """
    folder = repository / scan_entry(model)
    if folder.exists() and not scan_parameters(read_config(folder)):
        raise SpecError(
            f"{model}: its whole scans need the name {folder.name}, and {folder} is another model: build it under "
            "another name, or without whole scans",
            settings=("whole_scans",),
        )


def publish_scan_entry(repository: Path, entry: Entry) -> None:
    """Write the entry for whole scans of a model's newest version, unless it is there.

    Raises:
        SpecError: Another model has its name.
        SetupError: Another writer holds the repository.
        OutputError: It cannot be written; nothing half-written is left.
    """
    require_room_for_scans(repository, entry.name)
    with writing(repository, scan_entry(entry.name)):
        write_scan_entry(repository, entry)


def write_scan_entry(repository: Path, entry: Entry) -> None:
    """Do what :func:`publish_scan_entry` does, for one who is the only writer already."""
    folder, version, spec = repository / scan_entry(entry.name), entry.newest.version, entry.newest.spec
    config = _configuration(folder, {version: spec.digest}, contract_of(spec))
    if version in versions_on_disk(folder) and read_config(folder) == config:
        renew_scan_version(folder / str(version), spec.digest)
        return
    with staging(repository) as staged:
        version_folder = staged / str(version)
        write_scan_version(version_folder, spec.digest)
        if not folder.exists():
            atomic.write_text(staged / CONFIG_NAME, text_from_config(config))
            staged.rename(folder)
            return
        atomic.write_text(folder / CONFIG_NAME, text_from_config(config))
        if version not in versions_on_disk(folder):
            version_folder.rename(folder / str(version))


def write_scan_version(folder: Path, digest: str) -> None:
    """Put the files of a version into a new folder, and bring them to the disk."""
    folder.mkdir()
    for name, text in _files_of_version(digest).items():
        (folder / name).write_text(text, encoding="utf-8")
    bring_to_disk(folder)


def renew_scan_version(folder: Path, digest: str) -> None:
    """Write the files of a version again where another ctseg wrote them: the installed one may not speak with them."""
    for name, text in _files_of_version(digest).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            atomic.write_text(path, text)


def _files_of_version(digest: str) -> dict[str, str]:
    build = pretty_json({"digest": digest, "protocol": PROTOCOL})
    return {"model.py": SCAN_MODEL.read_text(encoding="utf-8"), BUILD_NAME: build}


def check_scan_entry(folder: Path) -> int:
    """Return the newest version of an entry for whole scans, which is the one that is served.

    Args:
        folder: ``<repository>/<name>_scan``.

    Raises:
        SpecError: The network that it calls is not beside it, or is another one, or a newer one has no whole scans.
    """
    version = max(versions_on_disk(folder), default=0)
    key, parameters = scan_parameter(version), read_config(folder).parameters
    found = parameters[key].string_value if key in parameters else ""
    network = folder.with_name(folder.name.removesuffix(SCAN_SUFFIX))
    digests = {item.version: item.spec.digest for item in read_entry(network).versions}
    if digests.get(version) != found:
        raise SpecError(
            f"{folder.name}: version {version} was written for the spec {found[:12] or 'none'}, version {version} of "
            f"{network.name} has {digests.get(version, 'none')[:12]}: build the model again"
        )
    if (newest := max(digests)) > version:
        raise SpecError(
            f"{folder.name}: its newest version is {version}, that of {network.name} is {newest}: whole scans are "
            f"segmented by another version than windows, and not at all once {network.name} serves later ones alone: "
            "build the model again, with its whole scans"
        )
    return version


def add_scan_tensors(config: ModelConfig, contract: ScanContract, version: int) -> None:
    """Let a configuration take whole scans.

    One version is served, the newest: a scan under way on the one before ends on its network, of which two are.
    """
    config.backend = "python"
    config.max_batch_size = 0
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(count=1, kind="KIND_CPU")
    for name, kind, dims in (
        (VOXELS_INT16, "INT16", [-1, -1, -1, -1]),
        (VOXELS_FP32, "FP32", [-1, -1, -1, -1]),
        (SPACING, "FP64", [3]),
        (PREVIOUS_LABELS, "UINT16", [-1, -1, -1]),
    ):
        config.input.add(name=name, data_type=f"TYPE_{kind}", dims=dims, optional=True)
    labels = f"TYPE_{contract.label_dtype.name.upper()}"
    for name, kind, dims in (
        (LABELS, labels, [-1, -1, -1]),
        (LABELS_DEFLATED, "TYPE_UINT8", [-1]),
        (REPORT, "TYPE_UINT8", [-1]),
    ):
        config.output.add(name=name, data_type=kind, dims=dims)
    config.parameters[scan_parameter(version)].string_value = contract.digest


def _configuration(folder: Path, digests: dict[int, str], contract: ScanContract) -> ModelConfig:
    (version,) = digests
    config = ModelConfig(name=folder.name)
    add_scan_tensors(config, contract, version)
    if not folder.exists():
        return config
    old = read_config(folder)
    for number in versions_on_disk(folder):
        key = scan_parameter(number)
        if key in old.parameters and number != version:
            config.parameters[key].string_value = old.parameters[key].string_value
    return config
