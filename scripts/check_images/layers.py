"""What an image really carries: the files of each of its layers, also those that a later layer hides."""

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from scripts.check_images.machine import Machine


def files_in_image(machine: Machine, image: str) -> list[str]:
    """Return the path of everything in every layer of an image of podman's storage."""
    command = ["podman", "save", "--format", "docker-archive", image]
    with subprocess.Popen(command, env=machine.environment, stdout=subprocess.PIPE) as saving:
        if saving.stdout is None:
            raise RuntimeError("podman has no standard output")
        found = list(files_in_layers(saving.stdout))
    if saving.returncode:
        raise subprocess.CalledProcessError(saving.returncode, command)
    return found


def files_in_layers(archive: IO[bytes]) -> Iterator[str]:
    """Yield the path of everything in every layer of a saved image, as ``podman save`` and ``docker save`` write it.

    Args:
        archive: A stream, read once: layers are never on the disk.
    """
    with tarfile.open(fileobj=archive, mode="r|") as image:
        for member in image:
            content = image.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            try:
                with tarfile.open(fileobj=content, mode="r|*") as layer:
                    yield from (f"/{PurePosixPath(item.name)}" for item in layer)
            except tarfile.ReadError:  # a document beside the layers
                continue


def patient_data_in(paths: list[str]) -> list[str]:
    """Return those paths that lie in a folder ``parity``, where a bundle has voxels of patients."""
    return [path for path in paths if "parity" in PurePosixPath(path).parts]
