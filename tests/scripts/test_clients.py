"""The example clients without ctseg: their labels are those of ``ctseg predict``, from one real server."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from ctseg.cli.main import main as ctseg
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.toy_models import toy_spec
from tests.support.whole_scans import write_scannable_entry

CLIENTS = Path(__file__).parents[2] / "examples" / "clients"
ABOVE_255 = {
    "labels": [
        {"name": "all", "values": [1, 2, 300]},
        {"name": "some", "values": [2]},
        {"name": "few", "values": [300]},
    ],
    "regions_class_order": [1, 2, 300],
}

linux = pytest.mark.skipif(sys.platform != "linux", reason="the embedded server is for Linux")


@dataclass(frozen=True)
class Served:
    """A server, and scans for it with the labels that ``ctseg predict`` gives."""

    server: RunningServer
    folder: Path

    def channels(self, case: str) -> list[str]:
        """The files of a scan."""
        return [str(self.folder / "scans" / f"{case}_{channel:04}.nii.gz") for channel in range(2)]

    def expected(self, model: str, case: str) -> nib.Nifti1Image:
        """The label map of ``ctseg predict``."""
        target = self.folder / model
        if not target.exists():
            words = ["predict", "-i", str(self.folder / "scans"), "-o", str(target), "-m", model]
            assert ctseg([*words, "--url", self.server.url]) == 0
        return nib.load(target / f"{case}.nii.gz")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, ct_piece: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "scans").mkdir()
    image = nib.load(ct_piece).slicer[20:60, 30:63, 5:20]
    voxels = np.asarray(image.dataobj)
    tilt = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    axes = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])
    turned = nib.affines.from_matvec(tilt @ axes @ np.diag(image.header.get_zooms()), (3, -5, 7))
    for case, dtype, affine in (("whole", np.int16, image.affine), ("turned", np.float32, turned)):
        for channel, values in enumerate((voxels, voxels[::-1, :, ::-1])):
            scan = nib.Nifti1Image(values.astype(dtype), affine)
            nib.save(scan, folder / "scans" / f"{case}_{channel:04}.nii.gz")
    root = folder / "models"
    write_scannable_entry(root)
    write_scannable_entry(root, toy_spec("above_255", **ABOVE_255))
    write_scannable_entry(root, toy_spec("turning", reader="SimpleITKIOWithReorient"))
    with embedded_server(root, options=ServerOptions(is_private=False, http_port=0)) as server:
        yield Served(server, folder)


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client in JavaScript with the packages of its lock file."""
    folder = tmp_path_factory.mktemp("javascript") / "client"
    shutil.copytree(CLIENTS / "javascript", folder, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], cwd=folder, check=True
    )
    return folder


@pytest.fixture(
    params=[
        pytest.param("curl", marks=pytest.mark.skipif(shutil.which("curl") is None, reason="NEEDS curl")),
        "python",
        pytest.param("javascript", marks=pytest.mark.skipif(shutil.which("npm") is None, reason="NEEDS node AND npm")),
    ]
)
def client(request: pytest.FixtureRequest, served: Served) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs one of the clients with an entry, a target and the files of a scan."""
    http, grpc = served.server.http_url, served.server.url
    command = {
        "curl": lambda: ["bash", CLIENTS / "segment.sh", http],
        "python": lambda: [sys.executable, CLIENTS / "segment.py", grpc],
        "javascript": lambda: ["node", request.getfixturevalue("javascript") / "segment.mjs", grpc],
    }[request.param]()

    def run(entry: str, target: Path, scans: list[str]) -> "subprocess.CompletedProcess[str]":
        words = [str(word) for word in (*command, entry, target, *scans)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    return run


@pytest.mark.live
@linux
@pytest.mark.parametrize(("model", "case"), [("toy", "whole"), ("toy", "turned"), ("above_255", "whole")])
def test_labels_are_those_of_ctseg_predict(
    served: Served, client: Callable, tmp_path: Path, model: str, case: str
) -> None:
    done = client(f"{model}_scan", tmp_path / "labels.nii.gz", served.channels(case))
    assert done.returncode == 0, done.stderr
    require_equal(nib.load(tmp_path / "labels.nii.gz"), served.expected(model, case))
    assert json.loads(done.stdout)["model"] == model


@pytest.mark.live
@linux
def test_a_reader_that_turns_scans_is_followed_or_refused(served: Served, client: Callable, tmp_path: Path) -> None:
    done = client("turning_scan", tmp_path / "labels.nii.gz", served.channels("turned"))
    if done.returncode:
        assert "turn the scan" in done.stderr
    else:
        require_equal(nib.load(tmp_path / "labels.nii.gz"), served.expected("turning", "turned"))


@pytest.mark.live
@linux
def test_what_the_server_refuses_is_told(served: Served, client: Callable, tmp_path: Path) -> None:
    done = client("toy_scan", tmp_path / "labels.nii.gz", served.channels("whole")[:1])
    assert done.returncode == 1
    assert "with 2 channels (CT, PET)" in done.stderr
    assert not (tmp_path / "labels.nii.gz").exists()


def require_equal(found: nib.Nifti1Image, expected: nib.Nifti1Image) -> None:
    labels = np.asarray(expected.dataobj)
    assert len(np.unique(labels)) >= 3
    np.testing.assert_array_equal(np.asarray(found.dataobj), labels)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert found.get_data_dtype() == expected.get_data_dtype()


def test_the_excerpt_of_tritons_messages_has_their_numbers() -> None:
    words = (CLIENTS / "javascript" / "triton.proto").read_text().split("inference;")[1].split()
    scope: list[Descriptor] = []
    checked = 0
    for position, word in enumerate(words):
        if word == "message":
            name = words[position + 1]
            whole = vars(service_pb2).get(name) or vars(model_config_pb2).get(name)
            scope.append(scope[-1].nested_types_by_name[name] if scope else whole.DESCRIPTOR)
        elif word == "}" and scope:
            scope.pop()
        elif word == "=" and scope:
            assert scope[-1].fields_by_name[words[position - 1]].number == int(words[position + 1].rstrip(";"))
            checked += 1
    assert checked > 20
