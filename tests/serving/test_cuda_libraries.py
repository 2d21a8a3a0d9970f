"""Where CUDA's libraries are found in NVIDIA's Python packages, whichever environment these lie in."""

import shutil
import sys
from pathlib import Path

import pytest

from ctseg.serving.cuda_libraries import cuda_library_folders, load_cuda_libraries

LIBRARY = Path("/lib/x86_64-linux-gnu/libz.so.1")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NVIDIA's packages in two environments, of which only the second one's are libraries."""
    for environment, folders in (("own", ("cuda_nvcc/bin",)), ("parent", ("cu13/lib", "cudnn/lib", "cu13/include"))):
        for folder in folders:
            (tmp_path / environment / "nvidia" / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own"), str(tmp_path / "parent")])
    return tmp_path / "parent" / "nvidia"


def test_libraries_are_found_in_any_environment_on_the_path(packages: Path) -> None:
    (packages / "cudnn" / "lib" / "libcudnn.so.9").touch()
    assert cuda_library_folders() == (packages / "cudnn" / "lib",)  # nothing lies in cu13/lib
    (packages / "cu13" / "lib" / "libcudart.so.13").touch()
    assert cuda_library_folders() == (packages / "cu13" / "lib", packages / "cudnn" / "lib")


@pytest.mark.skipif(not LIBRARY.exists(), reason="no Debian on x86-64")
def test_a_library_that_cannot_be_loaded_keeps_no_other_from_loading(packages: Path) -> None:
    broken, sound = packages / "cu13" / "lib" / "libcudart.so.13", packages / "cudnn" / "lib" / "libcudnn.so.9"
    broken.write_bytes(b"no library")
    shutil.copyfile(LIBRARY, sound)
    assert load_cuda_libraries() == (sound,)


def test_a_machine_without_nvidias_packages_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda_library_folders() == ()
    assert load_cuda_libraries() == ()
