"""Where it is measured: machine and versions."""

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.results import Machine
from ctseg.compiled.cpus import usable_cpus

IDLE_WATCH_S = 3.0
_PACKAGES = (
    "ctseg", "nnunetv2", "torch", "monai", "onnxruntime", "openvino", "numpy", "numba", "scipy", "scikit-image",
    "tritonclient", "nvidia-pytriton", "SimpleITK", "pydicom",
)  # fmt: skip


def this_machine() -> Machine:
    """Return the machine, after a look at how busy others keep it."""
    return Machine(
        system=platform.platform(terse=True),
        processor=processor_name(),
        cpus=usable_cpus(),
        memory_gb=psutil.virtual_memory().total / 1e9,
        busy_cpus=psutil.cpu_percent(interval=IDLE_WATCH_S) / 100 * (psutil.cpu_count() or 1),
        python=platform.python_version(),
    )


def processor_name() -> str:
    """Return what the processors are called, or of which architecture they are."""
    names = {
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return ", ".join(sorted(names)) or platform.machine()


def installed_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of the packages that figures depend on, as far as they are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
