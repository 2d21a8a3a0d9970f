"""An environment for a bare machine: its own torch and numpy, and beside them what the wheels bring.

Only the standard library is needed here.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from scripts.gpu_proof.wheels import LIB_DYNLOAD, ROOT, join


def make_environment(folder: Path, wheels: Path) -> Path:
    """Make a virtual environment that sees the packages of this Python, and install wheels into it.

    This Python may live in a virtual environment itself: then ``--system-site-packages`` would show those of the
    Python below it. So the folders of its packages are named in a ``.pth`` file. The compiled modules that came with
    a libpython stand last in it: what a Python has built in, or has files of, goes first.

    Args:
        folder: Where it goes.
        wheels: Folder of ``make gpu-wheels``, or of plain wheels.

    Returns:
        Its Python.

    Raises:
        ValueError: A wheel, or a piece of one, is missing or damaged.
        RuntimeError: It cannot be made; the end of what was printed stands in the message.
    """
    environment = folder / "environment"
    python = environment / "bin" / "python"
    files = join(wheels, folder / "wheels")
    if not python.exists():
        _run(sys.executable, "-m", "venv", "--without-pip", environment)
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and path != str(packages)]
    for archive in (file for file in files if file.name == LIB_DYNLOAD):
        modules = environment / "lib" / "lib-dynload"
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(modules)
        below.append(str(modules))
    (packages / "machine.pth").write_text("\n".join(below) + "\n", encoding="utf-8")
    for library in (file for file in files if file.name.startswith("libpython")):
        shutil.copyfile(library, environment / "lib" / library.name)
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-index", "--no-deps")
    _run(*pip, "--no-cache-dir", "--no-compile", *(file for file in files if file.suffix == ".whl"))
    _run(*pip, "--no-build-isolation", "--editable", ROOT)
    return python


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"{' '.join(map(str, words[:5]))} … ended with status {done.returncode}: {said}")
