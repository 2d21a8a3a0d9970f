"""What is old or half-written leaves a model repository."""

from collections.abc import Collection
from pathlib import Path

from ctseg.serving.entries import read_config, read_entry, versions_on_disk
from ctseg.serving.writing import staging, write_head, writing
from ctseg.triton.configuration import precision_hint_parameter, runtime_parameter, spec_parameter


def remove_versions(repository: Path, name: str, versions: Collection[int]) -> None:
    """Remove versions of a model: their folders at once, then what the configuration says of them.

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
            for number in versions:
                (folder / str(number)).rename(old / str(number))
                for key in (spec_parameter(number), runtime_parameter(number), precision_hint_parameter(number)):
                    config.parameters.pop(key, None)
            write_head(folder, config, read_entry(folder).newest.spec)


def remove_leftovers(repository: Path) -> None:
    """Remove what killed writers have left.

    Raises:
        SetupError: Another writer holds the repository.
        OutputError: The repository cannot be written.
    """
    with writing(repository, "leftovers"), staging(repository):
        pass
