"""Arrays to and from Triton's python backend.

By DLPack only: ``as_numpy()`` of the stub in Triton 24.10 gives empty tensors with numpy 2, and says nothing.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

_USED = b"used_dltensor"


def to_triton(backend: Any, name: str, array: npt.NDArray[Any]) -> Any:
    """Hand an array to Triton, which copies it when the tensor is sent.

    Args:
        backend: The module ``triton_python_backend_utils``, which exists in Triton's stub process only.
        name: Of the tensor.
        array: Writable, C-contiguous.

    Returns:
        A ``pb_utils.Tensor``.
    """
    capsule = array.__dlpack__()
    tensor = backend.Tensor.from_dlpack(name, capsule)
    # the stub of 24.10 gives the capsule a name that numpy does not expect
    ctypes.pythonapi.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
    ctypes.pythonapi.PyCapsule_SetName(capsule, _USED)
    return tensor


def from_triton(tensor: Any) -> npt.NDArray[Any]:
    """Return a view of a tensor on the CPU; perhaps read-only, valid as long as it or a view of it is there."""
    array: npt.NDArray[Any] = np.from_dlpack(tensor)
    return array


def text_to_triton(backend: Any, name: str, text: str) -> Any:
    """Hand text to Triton as the bytes of its UTF-8."""
    return to_triton(backend, name, np.frombuffer(text.encode(), np.uint8).copy())
