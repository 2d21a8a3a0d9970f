"""What the deployment layer needs installed."""

import sys
from importlib.util import find_spec

from ctseg.errors import missing_package

_NEEDED = ("torch", "nnunetv2", "onnx", "onnxruntime", "onnxslim", "onnxscript")


def require_extra() -> None:
    """Refuse by name what an export needs and this installation lacks.

    Raises:
        SetupError: A package of the extra ``deploy`` is missing.
    """
    if missing := [package for package in _NEEDED if package not in sys.modules and find_spec(package) is None]:
        raise missing_package(", ".join(missing), needed_for="an export", extra="deploy")
