"""The Python inside Triton's python backend: which it is, and whether it finds the standard library and numpy.

The backend's stub loads a shared libpython, which may have fewer modules built in than the executable that the
standard library on this machine was made for.
"""

import json
import os
import re
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

from ctseg.documents import Document
from ctseg.errors import SetupError
from ctseg.serving.installation import Installation
from ctseg.serving.life import SHM_PREFIX

MODULES = (
    *("math", "zlib", "select", "fcntl", "_struct", "_socket", "_posixsubprocess", "mmap", "ctypes", "ssl", "bz2"),
    *("lzma", "hashlib", "random", "multiprocessing", "numpy", "scipy.ndimage"),
)
START_S = 40.0
_STOP_S = 10.0
_SAID = 1000
_CONFIG = """backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
_MODEL = """import importlib, json, os, sys

class TritonPythonModel:
    def initialize(self, args):
        problems = []
        for name in {modules!r}:
            try:
                importlib.import_module(name)
            except Exception as error:
                problems.append(f"{{name}}: {{type(error).__name__}}: {{error}}")
        maps = [line.split()[-1] for line in open("/proc/self/maps") if "libpython" in line]
        answer = dict(version=sys.version.split()[0], builtin_modules=len(sys.builtin_module_names),
                      library=maps[0] if maps else "", problems=problems)
        with open({answer!r} + ".part", "w") as file:
            json.dump(answer, file)
        os.rename({answer!r} + ".part", {answer!r})

    def execute(self, requests):
        return []
"""


class EmbeddedPython(Document):
    """What the Python in the stub says of itself.

    Attributes:
        version: Of its standard library's libpython.
        builtin_modules: How many modules are built in.
        library: The libpython that was loaded.
        problems: Of the modules that could not be imported.
    """

    version: str
    builtin_modules: int
    library: str
    problems: tuple[str, ...]


def ask_embedded_python(installation: Installation) -> EmbeddedPython:
    """Serve a model that imports modules when it is loaded, and return what it found.

    Raises:
        SetupError: It was not loaded; the end of the server's log stands in the message.
    """
    with tempfile.TemporaryDirectory(prefix="ctseg-stub-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        answer, log = folder / "answer.json", folder / "log"
        version = folder / "repository" / "probe" / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_CONFIG, encoding="utf-8")
        (version / "model.py").write_text(_MODEL.format(modules=MODULES, answer=str(answer)), encoding="utf-8")
        backends = installation.complete_backends(folder)
        words = [
            str(installation.runnable_binary(folder)),
            f"--model-repository={folder / 'repository'}",
            *([] if backends is None else [f"--backend-directory={backends}"]),
            f"--backend-config=python,shm-region-prefix-name={SHM_PREFIX}proof-{os.getpid()}",
            *("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"),
        ]
        with log.open("wb") as file:
            environment = installation.environment()
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
            try:
                give_up_at = time.monotonic() + START_S
                while not answer.exists() and process.poll() is None and time.monotonic() < give_up_at:
                    time.sleep(0.1)
            finally:
                _stop(process)
        if not answer.exists():
            text = log.read_text(errors="replace")
            errors = re.findall(r"\w+Error: .*?(?=\\n|$)", text, re.MULTILINE)
            said = errors[0] if errors else " ".join(text[-_SAID:].split())
            raise SetupError(f"a model of the python backend was not loaded: {said}")
        return EmbeddedPython(**json.loads(answer.read_text(encoding="utf-8")))


def library_of_this_python() -> str:
    """Say where the shared libpython of this Python would be, and whether it is there."""
    folder = Path(sysconfig.get_config_var("LIBDIR") or "")
    name = sysconfig.get_config_var("INSTSONAME") or ""
    version = sysconfig.get_python_version()
    there = sorted(path.name for path in folder.glob(f"libpython{version}*.so*"))
    return f"LIBDIR {folder}, in it {', '.join(there) or f'no libpython{version}'}; built as {name}"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
