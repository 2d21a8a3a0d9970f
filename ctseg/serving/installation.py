"""The tritonserver of this machine: found, made ready to run, and asked for its flags.

It comes from the PATH, or from the nvidia-pytriton wheel (whose Python package is not imported).
"""

import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.serving.cuda_libraries import cuda_library_folders
from ctseg.serving.isolation import empty_folder, isolated_environment
from ctseg.serving.triton_flags import flags_in_help

_INSTALL = "install nvidia-pytriton (Linux x86-64) as docs/install.md shows, or put tritonserver on the PATH"


@dataclass(frozen=True)
class Installation:
    """Where a tritonserver is on this machine.

    Attributes:
        binary: The program.
        library_path: Folders for the dynamic linker.
        backends: Folder of its backends, None for the program's own default.
        stub: The python backend's stub for this Python, None where the backends bring their own.
        source: Where it was found, for messages.
    """

    binary: Path
    library_path: tuple[Path, ...] = ()
    backends: Path | None = None
    stub: Path | None = None
    source: str = ""

    def runnable_binary(self, folder: Path) -> Path:
        """Return a path at which the program may be run: its own, or a copy in the folder."""
        if os.access(self.binary, os.X_OK):
            return self.binary
        copy = folder / self.binary.name
        if not copy.exists():
            shutil.copyfile(self.binary, copy)
            copy.chmod(stat.S_IRWXU)
        return copy

    @property
    def bytes_copied(self) -> int:
        """What :meth:`runnable_binary` and :meth:`complete_backends` put into a folder, at most."""
        files = [] if os.access(self.binary, os.X_OK) else [self.binary]
        return sum(path.stat().st_size for path in [*files, *filter(None, [self.stub])])

    def complete_backends(self, folder: Path) -> Path | None:
        """Put the python backend together in the folder: the wheel keeps its stubs apart, one for each Python.

        Returns:
            The folder of backends for the server; None for the program's own default.
        """
        if self.backends is None or self.stub is None:
            return self.backends
        backends = folder / "backends"
        python = backends / "python"
        python.mkdir(parents=True)
        for path in (self.backends / "python").iterdir():
            if path.is_file():
                (python / path.name).symlink_to(path)
        stub = python / self.stub.name
        shutil.copyfile(self.stub, stub)
        stub.chmod(stat.S_IRWXU)
        return backends

    def environment(self) -> dict[str, str]:
        """Return the server's environment; the python backend takes its packages from the PATH's first python3."""
        isolated = isolated_environment()
        kept = {name: value for name, value in isolated.items() if not name.startswith(("PYTHON", "LD_PRELOAD"))}
        kept.update({name: isolated[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH") if name in isolated})
        folders = [str(path) for path in self.library_path if path.is_absolute()]
        if folders:
            kept["LD_LIBRARY_PATH"] = ":".join([*folders, *filter(None, [kept.get("LD_LIBRARY_PATH")])])
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
        kept["PYTHONDONTWRITEBYTECODE"] = "1"
        kept["PYTHONNOUSERSITE"] = "1"
        return kept

    def supported_flags(self) -> frozenset[str]:
        """Return the command-line flags that this tritonserver knows, such as ``--allow-client-shm``.

        Raises:
            SetupError: The program does not start.
        """
        with empty_folder("ctseg-help-") as folder:
            binary = self.runnable_binary(folder)
            try:
                result = subprocess.run(
                    [str(binary), "--help"],
                    env=self.environment(),
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise SetupError(f"{self.source}: {self.binary} does not start: {error}") from error
        text = result.stdout + result.stderr
        flags = flags_in_help(text)
        if "--model-repository" not in flags:
            raise SetupError(f"{self.source}: `{self.binary} --help` fails: {text.strip()[-2000:]}")
        return flags


def find_server() -> Installation:
    """Find a tritonserver: on the PATH, else in the nvidia-pytriton wheel.

    Raises:
        SetupError: Not on Linux, or none is installed, or it has no stub for this Python.
    """
    if platform.system() != "Linux":
        raise SetupError(
            f"the embedded server runs on Linux only, this is {platform.system()}: segment through a server elsewhere",
            settings=("urls",),
        )
    if on_path := shutil.which("tritonserver", path=isolated_environment()["PATH"]):
        return Installation(binary=Path(on_path).resolve(), source=on_path)
    try:
        distribution = importlib.metadata.distribution("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError as error:
        raise SetupError(f"no tritonserver on this machine: {_INSTALL}", settings=("urls",)) from error
    root = Path(str(distribution.locate_file("pytriton"))).absolute() / "tritonserver"
    libraries = Path(str(distribution.locate_file("nvidia_pytriton.libs"))).absolute()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    binary = root / "bin" / "tritonserver"
    stub = root / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not binary.is_file():
        raise SetupError(f"nvidia-pytriton is installed, but {binary} is missing: {_INSTALL}")
    if not stub.is_file():
        known = sorted(path.name for path in (root / "python_backend_stubs").glob("*"))
        raise SetupError(f"nvidia-pytriton has no python backend for Python {python}, only for {', '.join(known)}")
    return Installation(
        binary=binary,
        library_path=(libraries, _libpython_folder(), *cuda_library_folders()),
        backends=root / "backends",
        stub=stub,
        source=f"nvidia-pytriton {distribution.version}",
    )


def _libpython_folder() -> Path:
    """Return the folder of the shared libpython, which the python backend's stub needs."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    candidates = [
        Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"),
        Path(sys.base_prefix) / "lib",
        Path("/usr/lib") / multiarch,
        Path("/lib") / multiarch,
        Path("/usr/lib64"),
        Path(sys.prefix) / "lib",  # put into the environment where the system has none
    ]
    for folder in candidates:
        if (folder / name).exists():
            return folder
    raise SetupError(
        f"the embedded server needs {name}, which this Python ({sys.executable}) does not have: install the package "
        f"libpython{sys.version_info.major}.{sys.version_info.minor}, or use a Python built with --enable-shared"
    )
