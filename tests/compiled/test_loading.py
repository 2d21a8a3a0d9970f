"""Kernels: when they are loaded, where their cache lives, and how they are split over threads."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ctseg
from ctseg.compiled import cache, parallel
from ctseg.compiled.cache import copy_shipped_kernels, find_cache_home
from ctseg.compiled.cpus import usable_cpus
from ctseg.compiled.parallel import num_threads, run_parallel, set_num_threads
from ctseg.numerics.blend import SlabBlender
from ctseg.numerics.windows import plan_windows

PACKAGE = Path(ctseg.__file__).parent


def run_python(code: str, environment: dict[str, str], folder: Path | None = None) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_numeric_core_loads_no_numba_and_no_torch() -> None:
    code = (
        "import sys; from ctseg.numerics import postprocess, prepare, restore, windows; "
        "print([m for m in ('numba', 'torch', 'nnunetv2', 'skimage') if m in sys.modules])"
    )
    assert run_python(code, {}).strip() == "[]"


def test_kernels_load_on_a_thread_while_the_caller_goes_on() -> None:
    code = (
        "import sys, threading; from ctseg.compiled.loading import load_kernels_ahead; "
        "from ctseg.numerics import KERNEL_MODULES; load_kernels_ahead(KERNEL_MODULES); "
        "name = 'ctseg.numerics.restore_kernels'; "
        "early = name in sys.modules and hasattr(sys.modules[name], 'resample_planes'); "
        "[t.join() for t in threading.enumerate() if t is not threading.main_thread()]; "
        "print(early, hasattr(sys.modules[name], 'resample_planes'))"
    )
    assert run_python(code, {}).strip() == "False True"


def test_kernels_that_fail_ahead_fail_where_they_are_needed() -> None:
    code = (
        "import sys, threading; sys.modules['numba'] = None; "
        "from ctseg.compiled.loading import load_kernels, load_kernels_ahead; "
        "from ctseg.numerics import KERNEL_MODULES; load_kernels_ahead(KERNEL_MODULES); "
        "[t.join() for t in threading.enumerate() if t is not threading.main_thread()]\n"
        "try: load_kernels(KERNEL_MODULES[0])\n"
        "except Exception as error: print(type(error).__name__)"
    )
    assert run_python(code, {}).strip() == "SetupError"


@pytest.fixture
def shut_folder(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Folders in which nothing can be written; a set to add to (the tests may run as root, whom modes do not stop)."""
    shut: set[Path] = set()
    really = cache._is_writable
    monkeypatch.setattr(
        cache,
        "_is_writable",
        lambda folder: not any(folder.is_relative_to(path) for path in shut) and really(folder),
    )
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    return shut


def test_cache_lies_in_the_package_where_that_can_be_written(tmp_path: Path, shut_folder: set[Path]) -> None:
    assert find_cache_home(tmp_path / "package" / "kernels.py") is None


def test_cache_of_a_read_only_package_lies_in_the_users_cache(
    tmp_path: Path, shut_folder: set[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shut_folder.add(tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_cache_home(tmp_path / "package" / "kernels.py") == tmp_path / "cache" / "ctseg" / "kernels"


def test_cache_of_a_read_only_package_and_home_lies_in_a_private_temporary_folder(
    tmp_path: Path, shut_folder: set[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shut_folder |= {tmp_path / "package", tmp_path / "home"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / ".cache"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(temporary))
    home = find_cache_home(tmp_path / "package" / "kernels.py")
    assert home is not None
    assert home.parent == temporary
    assert home.stat().st_mode & 0o077 == 0


def test_temporary_folder_that_others_can_write_is_not_trusted_with_code(
    tmp_path: Path, shut_folder: set[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shut_folder |= {tmp_path / "package", tmp_path / "home"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    temporary = tmp_path / "tmp"
    foreign = temporary / f"ctseg-kernels-{os.getuid()}"
    foreign.mkdir(parents=True)
    foreign.chmod(0o777)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(temporary))
    with pytest.raises(OSError, match="no writable folder for compiled kernels"):
        find_cache_home(tmp_path / "package" / "kernels.py")


def test_kernels_that_came_with_a_read_only_package_are_used_from_a_copy(tmp_path: Path) -> None:
    shipped = tmp_path / "package" / "__pycache__"
    shipped.mkdir(parents=True)
    (shipped / "kernels.add_window-1.py311.nbi").write_bytes(b"index")
    (shipped / "kernels.add_window-1.py311.1.nbc").write_bytes(b"code")
    (shipped / "other.f-1.py311.nbi").write_bytes(b"")
    copy_shipped_kernels(tmp_path / "package" / "kernels.py", tmp_path / "copy")
    assert {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()} == {
        "kernels.add_window-1.py311.nbi": b"index",
        "kernels.add_window-1.py311.1.nbc": b"code",
    }


@pytest.mark.full
def test_second_process_on_a_read_only_package_compiles_nothing(tmp_path: Path) -> None:
    package = tmp_path / "site"
    shutil.copytree(PACKAGE, package / "ctseg", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "ctseg" / "numerics" / "__pycache__").write_text("a file where a folder should be: nobody can write")
    code = (
        "import ctseg; from ctseg.compiled.loading import load_kernels; from ctseg.numerics import KERNEL_MODULES; "
        "kernels = {n: f for name in KERNEL_MODULES for n, f in vars(load_kernels(name)).items()}; "
        "print(ctseg.__file__, sum(sum(kernels[n].stats.cache_hits.values()) for n in "
        "('resize_axis', 'add_window', 'divide_by_weights', 'label_planes', 'resample_planes')))"
    )
    environment = {
        "PYTHONPATH": str(package),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    first, second = (run_python(code, environment, tmp_path).split() for _ in range(2))
    assert first == [str(package / "ctseg" / "__init__.py"), "0"]
    assert second == [str(package / "ctseg" / "__init__.py"), "5"]


@pytest.fixture
def three_threads() -> object:
    set_num_threads(3)
    yield
    set_num_threads(None)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 11, 12, 13, 1000])
@pytest.mark.usefixtures("three_threads")
def test_every_unit_is_worked_on_once(count: int) -> None:
    seen = np.zeros(count, int)

    def task(first: int, last: int) -> None:
        seen[first:last] += 1

    run_parallel(task, count)
    assert (seen == 1).all()


@pytest.mark.usefixtures("three_threads")
def test_error_of_a_part_reaches_the_caller() -> None:
    def task(first: int, last: int) -> None:
        if first <= 50 < last:
            raise MemoryError("part of unit 50")

    for _ in range(20):
        with pytest.raises(MemoryError, match="part of unit 50"):
            run_parallel(task, 100)


@pytest.mark.usefixtures("three_threads")
def test_where_no_thread_can_be_started_the_caller_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parallel, "_pools", {})
    monkeypatch.setattr(threading.Thread, "start", refuse)
    workers: set[str] = set()
    run_parallel(lambda first, last: workers.add(threading.current_thread().name), 100)
    assert workers == {threading.current_thread().name}


@pytest.mark.usefixtures("three_threads")
def test_kernels_called_from_several_threads_at_once_give_the_same_result() -> None:
    plan = plan_windows((40, 40, 40), (16, 24, 24))
    logits = np.random.default_rng(0).normal(size=(len(plan), 3, 16, 24, 24)).astype(np.float32)

    def blend(_: int) -> np.ndarray:
        blender = SlabBlender(plan, 3)
        return np.concatenate([slab.copy() for slab in blender.add(logits)], axis=1)

    expected = blend(0)
    with ThreadPoolExecutor(6) as pool:
        for result in pool.map(blend, range(24)):
            np.testing.assert_array_equal(result, expected)


def test_number_of_threads_is_that_of_the_processors_this_process_may_use() -> None:
    assert num_threads() == usable_cpus() == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="expected at least 1 thread, found 0"):
        set_num_threads(0)


@pytest.mark.usefixtures("three_threads")
def test_one_thread_is_the_callers_own() -> None:
    set_num_threads(1)
    names: list[str] = []
    run_parallel(lambda first, last: names.append(threading.current_thread().name), 100)
    assert names == [threading.current_thread().name]


def test_what_other_threads_print_stays_where_it_goes_while_kernels_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING")
    code = (
        "import sys; from ctseg.compiled.loading import load_kernels; load_kernels('ctseg.numerics.blend_kernels'); "
        "print('colorama' in sys.modules and 'init' in vars(sys.modules['numba.core.errors']))"
    )
    assert run_python(code, {"NUMBA_CACHE_DIR": str(tmp_path)}).strip() == "False"
