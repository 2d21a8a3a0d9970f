"""Whole scans stay with their network: a version that is replaced, one that does not fit, a server without ctseg."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import ctseg
from ctseg.serving.process import ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.live_triton import wait_for
from tests.support.toy_models import toy_spec
from tests.support.whole_scans import Gate, ScanClient, marked_scan, write_gated_entry, write_scannable_entry

pytestmark = pytest.mark.live

IN_A_SERVER_WITHOUT_CTSEG = """
import sys
from pathlib import Path
from ctseg.serving.process import ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.live_triton import connected
from tests.support.toy_models import toy_patches
from tests.support.whole_scans import ScanClient, marked_scan

with embedded_server(Path(sys.argv[1]), options=ServerOptions(prove=False)) as server:
    print(ScanClient(server).send(marked_scan(1)).failure)
    with connected(server) as predictor:
        print(predictor.predict(toy_patches(1)).shape)
"""


def test_a_scan_under_way_ends_on_its_version_while_the_next_one_is_served(tmp_path: Path) -> None:
    root, gate = tmp_path / "models", Gate(tmp_path)
    write_gated_entry(root, gate.folder)
    shape = (24, 20, 28)
    with embedded_server(root, options=ServerOptions(is_private=False, watch=True, prove=False)) as server:
        client = ScanClient(server, "gated_scan")
        under_way = client.send(marked_scan(1, shape), id="old")
        wait_for(lambda: gate.calls)
        gate.let(20)
        write_scannable_entry(root, toy_spec("gated"), version=2)
        wait_for(lambda: client.versions == ["2"], 60)
        gate.let(10**9)
        assert under_way.report["version"] == 1
        assert under_way.report["windows"] > 20
        np.testing.assert_array_equal(under_way.labels, client.send(marked_scan(1, shape)).labels)


def test_an_entry_that_was_written_for_another_network_answers_by_name(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_scannable_entry(root)
    config = root / "toy_scan" / "config.pbtxt"
    config.write_text(config.read_text().replace(toy_spec().digest, "f" * 64))
    with embedded_server(root, options=ServerOptions(prove=False)) as server:
        failure = ScanClient(server).send(marked_scan(1)).failure
    assert failure.startswith("[StatusCode.UNIMPLEMENTED]")
    assert f"was written for the spec {'f' * 12}, and toy beside it has {toy_spec().digest[:12]}" in failure


def test_a_server_without_ctseg_serves_the_network_and_answers_scans_by_name(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_scannable_entry(root)
    python = without_ctseg(tmp_path / "venv")
    source = Path(ctseg.__file__).parents[1]
    done = subprocess.run(
        [python, "-c", IN_A_SERVER_WITHOUT_CTSEG, str(root)], cwd=source, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(source)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    failure, shape = done.stdout.splitlines()
    assert failure.startswith("[StatusCode.UNIMPLEMENTED] whole scans need ctseg, which the Python of this server")
    assert shape == "(1, 3, 6, 10, 14)"


def without_ctseg(folder: Path) -> Path:
    """Make an environment with all packages of this one but ctseg: the stub takes its packages from there alone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (site,) = folder.glob("lib/python3*/site-packages")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(np.__file__).parents[1])}:
        for path in Path(place).iterdir():
            if "ctseg" not in path.name and path.suffix != ".pth" and not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    return folder / "bin" / "python"
