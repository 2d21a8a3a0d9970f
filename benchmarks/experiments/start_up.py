"""Start-up: what happens before the first case, whatever is segmented."""

import sys
from functools import partial

from benchmarks.bench import Bench
from benchmarks.record import Record
from benchmarks.results import StartUp

CLIENT_MODULES = ("ctseg.cli.main", "ctseg.cli.predict", "ctseg.runs.folder")
"""What ``ctseg predict`` loads."""
_LOAD_KERNELS = (
    "import time; from ctseg.compiled.loading import load_kernels; from ctseg.numerics import KERNEL_MODULES; "
    "t = time.perf_counter(); [load_kernels(name) for name in KERNEL_MODULES]; print(time.perf_counter() - t)"
)


def measure_start_up(bench: Bench, record: Record) -> None:
    """Import the client, compile the kernels, and load them from their cache."""

    def keep(startup: StartUp) -> None:
        record.startup = startup

    record.step("start-up", partial(_start_up, bench), keep)


def _start_up(bench: Bench) -> StartUp:
    importing = [sys.executable, "-c", f"import {', '.join(CLIENT_MODULES)}, sys; print('torch' in sys.modules)"]
    imports = [bench.command(importing)[0] for _ in range(1 if bench.sizes.is_check else 3)]
    loading = [sys.executable, "-c", _LOAD_KERNELS]
    compiled_s, loaded_s = (float(bench.command(loading)[0].output.splitlines()[-1]) for _ in range(2))
    return StartUp(
        client_import_s=tuple(measured.wall_s for measured in imports),
        client_imports_torch="True" in imports[0].output,
        first_compile_s=compiled_s,
        load_kernels_s=loaded_s,
    )
