"""The TensorRT that a server on this machine loads: a plan only loads in the version that built it."""

import ctypes
import ctypes.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import SetupError
from ctseg.serving.isolation import isolated_environment


def server_library(backends: Sequence[Path] = (Path("/opt/tritonserver/backends"),)) -> Path | None:
    """Return the libnvinfer that a tritonserver on this machine would load, None where there is none."""
    for folder in backends:
        for file in sorted(folder.glob("tensorrt/libnvinfer.so.*")):
            return file
    found = ctypes.util.find_library("nvinfer")
    return Path(found) if found else None


def library_version(library: Path) -> str:
    """Ask a libnvinfer for its version, in a process of its own, so that it does not mix with another here.

    Raises:
        SetupError: It cannot be loaded.
    """
    program = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).getInferLibVersion())"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(library)],
        env=isolated_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise SetupError(f"{library}: cannot be loaded: {done.stderr.strip().splitlines()[-1:]}")
    number = int(done.stdout)
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def require_same_tensorrt(trt: Any, server: str) -> None:
    """Refuse to build with another TensorRT than the server loads.

    Args:
        trt: TensorRT's module.
        server: The server's version, such as ``11.2.1``.

    Raises:
        SetupError: They differ in one of the first three numbers.
    """
    own, other = (version.split(".")[:3] for version in (str(trt.__version__), server))
    if own != other:
        raise SetupError(
            f"the server loads TensorRT {server}, Python has {trt.__version__}; a plan only loads in the version that "
            f"built it: install TensorRT's Python package {server}, or build in the serving image"
        )
