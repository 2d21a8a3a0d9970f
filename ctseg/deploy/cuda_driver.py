"""The few calls of NVIDIA's CUDA driver that running a TensorRT plan needs, through ctypes.

The driver's library is on every machine with a working GPU, so a serving image needs no torch and no
CUDA Python package to prove a plan.
"""

import ctypes
import ctypes.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctseg.errors import InferenceFailedError, SetupError

_OUT_OF_MEMORY = 2
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: NVIDIA's name for it.
        compute_capability: Such as ``9.0``.
        memory_bytes: Of the whole GPU.
        driver: CUDA version that the driver supports, such as ``13.4``.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    driver: str


class CudaDriver:
    """The driver with the primary context of one GPU.

    Args:
        device: Number of the GPU among those that this process sees.
        load: Opens the driver's library.

    Raises:
        SetupError: There is no driver, or no such GPU.
    """

    def __init__(self, device: int = 0, *, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        try:
            self._library = load("libcuda.so.1")
        except OSError as error:
            raise SetupError(
                "no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded): what runs on a GPU is built on the "
                "GPU that serves it; run the build there, in a container with --gpus"
            ) from error
        try:
            self._call("cuInit", ctypes.c_uint(0))
            self._device = ctypes.c_int()
            self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(device))
            context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
            self._call("cuCtxSetCurrent", context)
        except InferenceFailedError as error:
            raise SetupError(f"GPU {device} cannot be used: {error}") from error

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise InferenceFailedError(
                f"{name}: out of GPU memory: stop what else uses the GPU, or take a smaller batch"
            )
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            raise InferenceFailedError(f"{name}: CUDA error {status}: {(text.value or b'unknown').decode()}")

    def gpu(self) -> Gpu:
        """Describe the GPU."""
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), self._device)
        memory, driver = ctypes.c_size_t(), ctypes.c_int()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), self._device)
        self._call("cuDriverGetVersion", ctypes.byref(driver))
        major, minor = (self._attribute(number) for number in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR))
        return Gpu(
            name=name.value.decode(),
            compute_capability=f"{major}.{minor}",
            memory_bytes=memory.value,
            driver=f"{driver.value // 1000}.{driver.value % 1000 // 10}",
        )

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), self._device)
        return value.value

    def allocate(self, size: int) -> int:
        """Return the address of new GPU memory, in bytes; :meth:`free` gives it back."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def to_gpu(self, pointer: int, array: Any) -> None:
        """Copy a C-contiguous array to the GPU."""
        self._call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(pointer),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )

    def from_gpu(self, array: Any, pointer: int) -> None:
        """Copy from the GPU into a C-contiguous array."""
        self._call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(pointer),
            ctypes.c_size_t(array.nbytes),
        )

    def synchronise(self) -> None:
        """Wait until the GPU has done all it was given."""
        self._call("cuCtxSynchronize")
