"""Machines that share a repository find each its own version, and none builds what it has built before."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from ctseg.container.builds import build_entries
from ctseg.deploy.build import BuildOptions, build_entry
from ctseg.deploy.bundle import Bundle
from ctseg.deploy.cuda_driver import Gpu
from ctseg.serving.entries import read_entry
from tests.support.container_entries import settings_of
from tests.support.onnx_as_plan import OnnxAsPlan

ONNXRUNTIME = BuildOptions(runtime="onnxruntime")


def test_two_gpus_of_one_compute_capability_share_a_repository(bundle: Bundle, tmp_path: Path) -> None:
    compilers = {}
    for name in ("L4", "RTX 4090"):
        compilers[name] = OnnxAsPlan()
        compilers[name].gpu = Gpu(name, "8.9", 1 << 30, "13.4")
    options = BuildOptions(backend="tensorrt", precision="fp16", if_needed=True)
    for _ in range(2):
        served = {
            name: build_entry(bundle.folder, tmp_path, options, compiler=compiler).newest.version
            for name, compiler in compilers.items()
        }
        assert served == {"L4": 1, "RTX 4090": 2}
    assert [len(compiler.builds) for compiler in compilers.values()] == [1, 1]
    assert len(read_entry(tmp_path / "unet").versions) == 2


def test_a_version_for_this_machine_is_found_behind_those_for_others_but_not_behind_another_network(
    bundle: Bundle, tmp_path: Path
) -> None:
    for _ in range(2):
        build_entry(bundle.folder, tmp_path, ONNXRUNTIME)
    needed = replace(ONNXRUNTIME, if_needed=True)
    file = tmp_path / "unet" / "2" / "build.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "machine": {"cpus": 9999}}))
    assert build_entry(bundle.folder, tmp_path, needed).newest.version == 1
    file.write_text(json.dumps({**content, "onnx_sha256": "0" * 64}))
    assert build_entry(bundle.folder, tmp_path, needed).newest.version == 3


def test_the_entry_point_of_the_image_learns_which_version_is_for_its_machine(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("models", "bundles"):
        (tmp_path / name).mkdir()
    settings = settings_of(
        CTSEG_MODELS=str(tmp_path / "models"), CTSEG_BACKEND="python", CTSEG_BUILD_OPTIONS="--runtime onnxruntime"
    )
    build_entry(bundle.folder, tmp_path / "models", ONNXRUNTIME)
    build_entry(bundle.folder, tmp_path / "models", ONNXRUNTIME)
    file = tmp_path / "models" / "unet" / "2" / "build.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "machine": {"cpus": 9999}}))
    assert build_entries(settings, [bundle.folder]) == {"unet": 1}


STOPS_HALF_WAY = """
import sys
if "ctseg.container.build_process" in sys.orig_argv:
    import time
    from ctseg.serving import publish

    def stop(folder):
        print("half-written", file=sys.stderr, flush=True)
        time.sleep(600)

    publish.bring_to_disk = stop
"""
SERVER = """
import sys
from pathlib import Path
from ctseg.container.builds import build_entries
from ctseg.container.children import end_by_signals
from ctseg.container.settings import read_settings
end_by_signals()
build_entries(read_settings(), [Path(sys.argv[1])])
"""


def test_a_server_that_is_told_to_end_while_it_builds_leaves_nothing_half_written(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOPS_HALF_WAY)
    models = tmp_path / "models"
    environment = {
        **os.environ,
        "CTSEG_MODELS": str(models),
        "CTSEG_BACKEND": "python",
        "CTSEG_BUILD_OPTIONS": "--runtime onnxruntime",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    command = [sys.executable, "-c", SERVER, str(bundle.folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        assert "half-written\n" in iter(server.stderr.readline, "")
        assert list(tmp_path.glob(".ctseg-staging-*/1/model.onnx"))
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob(".ctseg-staging-*"))
    assert [path.name for path in models.iterdir()] == [".ctseg.lock"]
