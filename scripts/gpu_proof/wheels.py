"""What a bare GPU machine lacks, as wheels: downloaded, cut into pieces for transfers, joined and checked there.

``python -m scripts.gpu_proof.wheels --output .wheels`` downloads what ``requirements/gpu.txt`` names; ``make
gpu-wheels`` runs it. With ``--piece-mib`` all files lie in numbered folders of at most that size, large ones cut, so
that each folder can travel by itself; ``manifest.json`` says what belongs together. Only the standard library is
needed here: this also runs where nothing is installed yet.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements" / "gpu.txt"
MANIFEST = "manifest.json"
PYTHON = "3.12"
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34, 35, 39)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
LIBPYTHON = f"libpython{PYTHON}.so.1.0"
LIB_DYNLOAD = f"lib-dynload-{PYTHON}.zip"
"""The standard library's compiled modules that belong to that libpython: another Python may have them built in."""
_TEST_MODULES = ("_test", "_ctypes_test", "xxlimited", "xxsubtype")
_PLAIN_NAME = re.compile(r"\w[\w.+!-]*", re.ASCII)
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Piece:
    """A file of a folder of wheels, whole or a part of one.

    Attributes:
        file: Its name; ``NAME.000``, ``NAME.001``, … where ``NAME`` was cut.
        size: Bytes.
        sha256: Of its bytes.
    """

    file: str
    size: int
    sha256: str


def main() -> int:
    """Fill a folder of wheels; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / ".wheels", help="default: %(default)s")
    parser.add_argument("--piece-mib", type=float, help="largest folder in MiB; default: one folder, nothing is cut")
    args = parser.parse_args()
    try:
        check_target(args.output)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="ctseg-wheels-") as temporary:
        try:
            download(REQUIREMENTS, Path(temporary))
        except subprocess.CalledProcessError as error:
            print(f"{' '.join(error.cmd[3:])} failed with status {error.returncode}", file=sys.stderr)
            return 1
        add_libpython(Path(temporary))
        folders = store(Path(temporary), args.output, None if args.piece_mib is None else int(args.piece_mib * 2**20))
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {size / 2**20:.0f} MiB in {len(folders)} folders")
    return 0


def download(requirements: Path, target: Path) -> None:
    """Download the wheels of a list of pins for the bare machine; what has none is built (pure Python only).

    Raises:
        CalledProcessError: pip failed.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tags = [word for platform in PLATFORMS for word in ("--platform", platform)]
    there = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *tags]
    for pin in pins(requirements):
        words = [*pip, "download", *there, "--dest", str(target), pin]
        if subprocess.run(words, check=False, capture_output=True).returncode:
            subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(target), pin], check=True)
        print(f"  {pin}", flush=True)


def pins(requirements: Path) -> list[str]:
    """Return the pins of a list."""
    lines = (line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def add_libpython(target: Path) -> None:
    """Copy the shared libpython, which Triton's stub needs, from a Python of that version where one is here.

    Its compiled modules go with it, as one archive: a Python whose executable has ``math`` or ``zlib`` built in has
    no files of them, so that another's libpython would miss them there.
    """
    program = shutil.which(f"python{PYTHON}")
    code = "import sysconfig; print(*map(sysconfig.get_config_var, ('LIBDIR', 'DESTSHARED')), sep='\\n')"
    folder = modules = ""
    if program is not None:
        environment = {**os.environ, "PYENV_VERSION": PYTHON}  # pyenv's programs ask for a version
        done = subprocess.run([program, "-c", code], capture_output=True, text=True, env=environment, check=False)
        if done.returncode == 0:
            folder, modules = done.stdout.splitlines()
    library = Path(folder) / LIBPYTHON
    if folder and library.is_file():
        _copy_stripped(library, target / LIBPYTHON)
        pack_modules(Path(modules), target / LIB_DYNLOAD)
    else:
        print(f"  {LIBPYTHON} is not here: the machine needs its own (package libpython{PYTHON})", flush=True)


def pack_modules(folder: Path, archive: Path) -> None:
    """Put the standard library's compiled modules into an archive, without symbols for debuggers and its tests."""
    with tempfile.TemporaryDirectory(prefix="ctseg-modules-") as temporary, zipfile.ZipFile(archive, "w") as file:
        for module in sorted(folder.glob("*.so")):
            if not module.name.startswith(_TEST_MODULES):
                copy = Path(temporary) / module.name
                _copy_stripped(module, copy)
                file.write(copy, module.name, zipfile.ZIP_DEFLATED)


def _copy_stripped(library: Path, copy: Path) -> None:
    shutil.copyfile(library, copy)
    if strip := shutil.which("strip"):  # of its symbols for debuggers, three quarters of it
        subprocess.run([strip, "--strip-unneeded", str(copy)], check=True)


def check_target(target: Path) -> None:
    """Make sure that a folder may be emptied: it is not there, or holds nothing but what :func:`store` wrote.

    Raises:
        ValueError: It holds something else.
    """
    if target.is_dir() and all(item.name.isdigit() and (item / MANIFEST).is_file() for item in target.iterdir()):
        return
    if target.exists():
        raise ValueError(
            f"{target}: expected a new or empty folder, or one that `make gpu-wheels` filled; it holds other things "
            "and would be emptied: name another, or remove it"
        )


def store(source: Path, target: Path, folder_bytes: int | None) -> list[Path]:
    """Put files into numbered folders, cut so that no folder is larger than asked, with a manifest in each.

    Args:
        source: Folder of files.
        target: Folder to fill; what it held is removed.
        folder_bytes: Largest folder; None: one folder, and nothing is cut.

    Returns:
        The folders.

    Raises:
        ValueError: The folder holds what no earlier call wrote.
    """
    check_target(target)
    shutil.rmtree(target, ignore_errors=True)
    manifest: dict[str, list[Piece]] = {}
    folders: list[Path] = []
    free = 0
    for file in sorted(source.iterdir(), key=lambda path: -path.stat().st_size):
        manifest[file.name] = []
        for number, data in enumerate(_cut(file, folder_bytes)):
            if len(data) > free or not folders:
                folders.append(target / f"{len(folders):02d}")
                folders[-1].mkdir(parents=True)
                free = folder_bytes or sys.maxsize
            free -= len(data)
            name = (
                file.name
                if folder_bytes is None or file.stat().st_size <= folder_bytes
                else f"{file.name}.{number:03d}"
            )
            (folders[-1] / name).write_bytes(data)
            manifest[file.name].append(Piece(name, len(data), hashlib.sha256(data).hexdigest()))
    text = json.dumps({name: [vars(piece) for piece in pieces] for name, pieces in manifest.items()}, indent=1)
    for folder in folders:
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return folders


def _cut(file: Path, piece_bytes: int | None) -> Iterator[bytes]:
    if piece_bytes is None:
        yield file.read_bytes()
        return
    with file.open("rb") as stream:
        while data := stream.read(piece_bytes):
            yield data


def join(source: Path, target: Path) -> list[Path]:
    """Put together what :func:`store` wrote, and check every byte.

    Args:
        source: Folder of the numbered folders; also a plain folder of wheels without a manifest.
        target: Folder to fill.

    Returns:
        The files.

    Raises:
        ValueError: A piece is missing or damaged, each named; there is no wheel; a name is not one of a file alone.
    """
    manifests = sorted(source.rglob(MANIFEST))
    if not manifests:
        wheels = sorted(source.rglob("*.whl"))
        if not wheels:
            raise ValueError(f"{source}: expected wheels, found none: fill it by `make gpu-wheels`")
        return wheels
    manifest = {
        name: [Piece(**item) for item in pieces]
        for name, pieces in json.loads(manifests[0].read_text(encoding="utf-8")).items()
    }
    names = [*manifest, *(piece.file for pieces in manifest.values() for piece in pieces)]
    if wrong := [name for name in names if not _PLAIN_NAME.fullmatch(name)]:
        raise ValueError(f"{manifests[0]}: expected names of files, found {', '.join(map(repr, wrong))}")
    problems, files = [], []
    target.mkdir(parents=True, exist_ok=True)
    for name, pieces in manifest.items():
        whole = target / name
        with whole.open("wb") as stream:
            for piece in pieces:
                problems += _append(source, piece, stream)
        files.append(whole)
    if problems:
        raise ValueError(f"{source}: {'; '.join(problems)}: bring those folders again, from one `make gpu-wheels`")
    return files


def _append(source: Path, piece: Piece, stream: BinaryIO) -> list[str]:
    found = next(source.rglob(piece.file), None)
    if found is None:
        return [f"{piece.file} is missing"]
    digest = hashlib.sha256()
    with found.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            stream.write(data)
    if digest.hexdigest() != piece.sha256:
        return [f"{found.relative_to(source)} is damaged ({found.stat().st_size} bytes, expected {piece.size})"]
    return []


if __name__ == "__main__":
    sys.exit(main())
