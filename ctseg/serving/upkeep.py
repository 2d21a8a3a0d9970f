"""What is old or half-written leaves a model repository."""

from collections.abc import Collection
from pathlib import Path

from ctseg.files import atomic
from ctseg.predict.whole_scan import scan_entry
from ctseg.serving.entries import CONFIG_NAME, read_config, read_entry, scan_versions, versions_on_disk
from ctseg.serving.writing import staging, write_head, writing
from ctseg.triton.configuration import (
    precision_hint_parameter,
    runtime_parameter,
    scan_parameter,
    spec_parameter,
    text_from_config,
)


def remove_versions(repository: Path, name: str, versions: Collection[int]) -> None:
    """Remove versions of a model: their folders at once, then what the configuration says of them.

    Its entry for whole scans loses them first: none of its versions ever stands without its network.

    Raises:
        ValueError: No version would be left.
        SetupError: Another writer holds the repository.
        OutputError: The repository cannot be written.
    """
    folder = repository / name
    with writing(repository, name):
        config = read_config(folder)
        if not set(versions_on_disk(folder)) - set(versions):
            raise ValueError(f"{name}: versions {sorted(versions)} are all that there are")
        with staging(repository) as old:
            _remove_scan_versions(repository, name, versions, old)
            for number in versions:
                (folder / str(number)).rename(old / str(number))
                for key in (spec_parameter(number), runtime_parameter(number), precision_hint_parameter(number)):
                    config.parameters.pop(key, None)
            write_head(folder, config, read_entry(folder).newest.spec)


def _remove_scan_versions(repository: Path, name: str, versions: Collection[int], old: Path) -> None:
    """Move versions of a model's entry for whole scans away; all of it where none is left."""
    folder = repository / scan_entry(name)
    going = set(scan_versions(repository, name)) & set(versions)  # none of another model of that name
    if not going:
        return
    if going == set(versions_on_disk(folder)):
        folder.rename(old / folder.name)
        return
    config = read_config(folder)
    for number in going:
        (folder / str(number)).rename(old / f"{folder.name}-{number}")
        config.parameters.pop(scan_parameter(number), None)
    atomic.write_text(folder / CONFIG_NAME, text_from_config(config))


def remove_leftovers(repository: Path) -> None:
    """Remove what killed writers have left.

    Raises:
        SetupError: Another writer holds the repository.
        OutputError: The repository cannot be written.
    """
    with writing(repository, "leftovers"), staging(repository):
        pass
