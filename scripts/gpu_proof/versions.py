"""The packages that the figures depend on."""

PACKAGES = (
    "ctseg", "torch", "torchvision", "nnunetv2", "batchgenerators", "batchgeneratorsv2",
    "dynamic-network-architectures", "monai", "numpy", "numba", "scipy", "scikit-image", "onnx", "onnxruntime",
    "onnxruntime-gpu", "onnxscript", "onnxslim", "openvino", "tensorrt", "tensorrt-cu13", "tensorrt-rtx",
    "tritonclient", "nvidia-pytriton", "SimpleITK", "nibabel", "pydantic",
)  # fmt: skip
