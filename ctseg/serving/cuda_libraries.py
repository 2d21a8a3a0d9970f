"""CUDA's libraries as NVIDIA's Python packages bring them (torch needs them), wherever on the module path they lie.

ONNX Runtime's own search looks only beside itself, and misses those of the environment that a venv was made from.
"""

import contextlib
import ctypes
from importlib.util import find_spec
from pathlib import Path

_IN_ORDER = ("libcudart", "libnvrtc", "libcublasLt", "libcublas", "libcurand", "libcufft", "libcudnn")
"""Each after those that it needs."""


def cuda_library_folders() -> tuple[Path, ...]:
    """Return the folders of CUDA's shared libraries in NVIDIA's Python packages; none where there are none."""
    found = find_spec("nvidia")
    roots = [] if found is None else [Path(root) for root in found.submodule_search_locations or ()]
    folders = [folder for root in roots for folder in sorted(root.glob("*/lib"))]
    return tuple(folder for folder in folders if any(folder.glob("lib*.so*")))


def load_cuda_libraries() -> tuple[Path, ...]:
    """Load CUDA, cuBLAS and cuDNN into this process, so that ONNX Runtime finds them by their names.

    Returns:
        What was loaded. A library that cannot be loaded is left out: whoever needs it says so.
    """
    loaded = []
    for name in _IN_ORDER:
        for path in (path for folder in cuda_library_folders() for path in sorted(folder.glob(f"{name}.so.*"))):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(path))
                loaded.append(path)
    return tuple(loaded)
