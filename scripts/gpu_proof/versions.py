"""Versions of the packages that the figures depend on."""

import importlib.metadata

_PACKAGES = (
    "ctseg", "torch", "torchvision", "nnunetv2", "batchgenerators", "batchgeneratorsv2",
    "dynamic-network-architectures", "monai", "numpy", "numba", "scipy", "scikit-image", "onnx", "onnxruntime",
    "onnxruntime-gpu", "onnxscript", "onnxslim", "openvino", "tensorrt", "tensorrt-cu13", "tensorrt-rtx",
    "tritonclient", "nvidia-pytriton", "SimpleITK", "nibabel", "pydantic",
)  # fmt: skip


def installed_versions() -> dict[str, str]:
    """Return the versions, of those packages that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
