"""Limits of a machine: memory of a control group, a link that is lost."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.folder_runs import Folder, Server, cgroup_of_memory, may, outcomes_in, serving
from tests.support.live_triton import wait_for

GIB = 1 << 30
LOST_S = 15


def test_a_scan_of_a_wrong_voxel_size_is_refused_and_the_others_are_done_within_the_limit(
    folder: Folder, tmp_path: Path
) -> None:
    group = cgroup_of_memory(f"ctseg-{os.getpid()}", 3 * GIB)
    if group is None:
        pytest.skip("a control group with a limit of memory cannot be made here: needs root")
    scans, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(folder.scans, scans)
    image = nib.load(scans / "case0_0000.nii.gz")
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([50, 50, 50, 1])), scans / "a_0000.nii.gz"
    )
    try:
        with serving(tmp_path) as server:
            in_group = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
            run = Folder(scans, folder.undisturbed).start(output, "--url", server.url, prefix=in_group)
            assert run.wait() == 1, run.said
    finally:
        group.rmdir()
    statuses = {name: outcome.status for name, outcome in outcomes_in(output).items()}
    assert statuses == {"a": "failed", **dict.fromkeys(folder.names, "ok")}
    error = outcomes_in(output)["a"].error
    assert error is not None
    assert "is the spacing in the file right?" in error.message
    folder.assert_visible_files_are_right(output)


def test_a_link_that_is_lost_for_a_while_loses_no_case(folder: Folder, tmp_path: Path) -> None:
    name = f"ctseg-{os.getpid()}"
    if not may("ip", "netns", "add", name):
        pytest.skip("a network namespace cannot be made here: needs root and iproute2")
    inside = ("ip", "netns", "exec", name)
    output = tmp_path / "out"
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        server = Server(tmp_path, prefix=inside)
        try:
            run = folder.start(
                output, "--save_probabilities", "--shared_memory", "off", "--url", server.url,
                "--timeout_s", "240", prefix=inside,
            )  # fmt: skip
            wait_for(lambda: outcomes_in(output) or run.has_ended)
            subprocess.run([*inside, "ip", "link", "set", "lo", "down"], check=True)
            time.sleep(LOST_S)
            assert not run.has_ended, run.said
            subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
            assert run.wait() == 0, run.said
        finally:
            server.close()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    folder.assert_is_done(output)
    assert json.loads((output / "report.json").read_text())["finished"]
