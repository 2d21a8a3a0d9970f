"""The example clients without ctseg: their labels are those of ``ctseg predict``, from one real server."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import InferenceServerClient, model_config_pb2, service_pb2

from ctseg.cli.main import main as ctseg
from ctseg.files.volume import read_volume
from ctseg.model_spec import Reader
from ctseg.predict.whole_scan import memory_order_of, order_to_text
from ctseg.recipe import Recipe
from ctseg.serving.entries import read_entry
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.recipe_entry import publish_recipe
from ctseg.serving.scan_entry import publish_scan_entry
from ctseg.serving.server import embedded_server
from tests.support.toy_models import toy_spec
from tests.support.whole_scans import write_scannable_entry

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "examples" / "clients"
PAGE = ROOT / "docs" / "api.md"
DEMO_SCAN = ROOT / "examples" / "demo_data" / "images" / "STS_025_0000.nii.gz"
ABOVE_255 = {
    "labels": [
        {"name": "all", "values": [1, 2, 300]},
        {"name": "some", "values": [2]},
        {"name": "few", "values": [300]},
    ],
    "regions_class_order": [1, 2, 300],
}

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="NEEDS curl")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the embedded server is for Linux")


@dataclass(frozen=True)
class Served:
    """A server, and scans for it with the labels that ``ctseg predict`` gives."""

    server: RunningServer
    scans: Path
    folder: Path

    def expected(self, model: str, case: str) -> nib.Nifti1Image:
        """The label map of ``ctseg predict``, which cuts the windows itself."""
        target = self.folder / model
        if not target.exists():
            words = ["predict", "-i", str(self.scans), "-o", str(target), "-m", model]
            assert ctseg([*words, "--url", self.server.url, "--where", "client"]) == 0
        return nib.load(target / f"{case}.nii.gz")


def channels_of(scans: Path, case: str) -> list[str]:
    """Return the files of a scan."""
    return [str(scans / f"{case}_{channel:04}.nii.gz") for channel in range(2)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, ct_piece: Path) -> Path:
    """Two scans of two channels: integers, and numbers in an oblique, flipped grid of other axes."""
    folder = tmp_path_factory.mktemp("scans")
    image = nib.load(ct_piece).slicer[20:60, 30:63, 5:20]
    voxels = np.asarray(image.dataobj)
    tilt = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    axes = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])
    turned = nib.affines.from_matvec(tilt @ axes @ np.diag(image.header.get_zooms()), (3, -5, 7))
    for case, dtype, affine in (("whole", np.int16, image.affine), ("turned", np.float32, turned)):
        for channel, values in enumerate((voxels, voxels[::-1, :, ::-1])):
            scan = nib.Nifti1Image(values.astype(dtype), affine)
            nib.save(scan, folder / f"{case}_{channel:04}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, scans: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    root = folder / "models"
    write_scannable_entry(root)
    write_scannable_entry(root, toy_spec("above_255", **ABOVE_255))
    turning = write_scannable_entry(root, toy_spec("turning", reader="SimpleITKIOWithReorient"))
    members, step = [{"model": turning.name, "digest": turning.digest}], {"kind": "model", "model": turning.name}
    publish_recipe(root, Recipe.model_validate({"name": "turned", "members": members, "step": step}))
    with embedded_server(root, options=ServerOptions(is_private=False, http_port=0)) as server:
        yield Served(server, scans, folder)


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
        pytest.param("curl", marks=needs_curl),
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
    done = client(f"{model}_scan", tmp_path / "labels.nii.gz", channels_of(served.scans, case))
    assert done.returncode == 0, done.stderr
    require_equal(nib.load(tmp_path / "labels.nii.gz"), served.expected(model, case))
    assert json.loads(done.stdout)["model"] == model


@pytest.mark.live
@linux
@needs_curl
@pytest.mark.skipif(shutil.which("localedef") is None, reason="NEEDS localedef")
def test_curl_writes_numbers_with_a_point_where_a_language_has_a_comma(served: Served, tmp_path: Path) -> None:
    made = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], check=False)
    if made.returncode:
        pytest.skip("NEEDS the sources of locales")
    target = tmp_path / "labels.nii.gz"
    words = ["bash", CLIENTS / "segment.sh", served.server.http_url or "", "toy_scan", target]
    german = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    subprocess.run([*words, *channels_of(served.scans, "turned")], env=german, check=True)
    require_equal(nib.load(target), served.expected("toy", "turned"))


@pytest.mark.live
@linux
@pytest.mark.parametrize(
    ("model", "entry"), [("turning", "turning_scan"), ("turned", "turned")], ids=["model", "recipe"]
)
def test_a_reader_that_turns_scans_is_followed_or_refused(
    served: Served, client: Callable, tmp_path: Path, model: str, entry: str
) -> None:
    done = client(entry, tmp_path / "labels.nii.gz", channels_of(served.scans, "turned"))
    if done.returncode:
        assert "turn the scan" in done.stderr
    else:
        require_equal(nib.load(tmp_path / "labels.nii.gz"), served.expected(model, "turned"))


@pytest.mark.live
@linux
def test_what_the_server_refuses_is_told(served: Served, client: Callable, tmp_path: Path) -> None:
    voxels = np.zeros((150, 140, 130), np.int16)  # over 4 MB, where Triton 2.51 dies of what it takes for a form
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    done = client("toy_scan", tmp_path / "labels.nii.gz", [str(tmp_path / "scan.nii.gz")])
    assert done.returncode == 1
    assert "with 2 channels (CT, PET)" in done.stderr
    assert not (tmp_path / "labels.nii.gz").exists()


@pytest.mark.live
@linux
def test_progress_is_asked_for_as_the_page_says(served: Served) -> None:
    names: dict[str, Any] = {}
    (code,) = (block for block in blocks_of(PAGE, "python") if "def progress_of" in block)
    exec(code, names)
    found = names["progress_of"](InferenceServerClient(served.server.url), "toy_scan", "7f0c52")
    assert (found["request"], found["state"]) == ("7f0c52", "unknown")


@pytest.mark.live
@linux
@pytest.mark.parametrize(
    ("entry", "request_", "status", "told"),
    [
        ("toy_scan", {"inputs": []}, 400, "expected one of the inputs voxels_int16 and voxels_fp32, found none"),
        ("toy_scan", {"inputs": [], "parameters": {"spec_digest": "ff"}}, 501, "expected the spec ff"),
        ("nobody_scan", {"inputs": []}, 404, "'nobody_scan' is not found"),
        ("toy_scan", {}, 500, "inputs"),
    ],
)
def test_errors_have_the_status_over_http_that_the_page_says(
    served: Served, entry: str, request_: dict[str, Any], status: int, told: str
) -> None:
    url = f"{served.server.http_url}/v2/models/{entry}/infer"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(url, data=json.dumps(request_).encode(), timeout=60)
    assert refusal.value.status == status
    assert told in json.loads(refusal.value.read())["error"]


def test_the_entries_of_the_demo_are_those_that_a_build_writes(tmp_path: Path) -> None:
    for name in ("composition", "sarcoma"):
        shutil.copytree(ROOT / "model_repository" / name, tmp_path / name)
        publish_scan_entry(tmp_path, read_entry(tmp_path / name))
        for path in (tmp_path / f"{name}_scan").rglob("*.*"):
            committed = ROOT / "model_repository" / path.relative_to(tmp_path)
            assert committed.read_text() == path.read_text(), f"{committed}: build it again"


@pytest.mark.parametrize("case", ["whole", "turned"])
@pytest.mark.parametrize("reader", get_args(Reader))
@pytest.mark.parametrize("library", ["SimpleITK", "nibabel"])
def test_arrays_lie_as_the_page_says(scans: Path, tmp_path: Path, library: str, reader: str, case: str) -> None:
    names: dict[str, Any] = {}
    (code,) = (block for block in blocks_of(PAGE, "python") if f"import {library}\n" in block)
    exec(code, names)
    path = channels_of(scans, case)[0]
    image = SimpleITK.ReadImage(path) if library == "SimpleITK" else nib.load(path)
    voxels, spacing_mm = names["array_of"](image, reader)
    expected = read_volume([Path(path)], reader)
    np.testing.assert_array_equal(voxels, expected.voxels[0])
    np.testing.assert_allclose(spacing_mm, expected.spacing_mm, rtol=1e-6)
    assert spacing_mm.dtype == np.float64
    back = names["image_of"]((voxels > 0).astype(np.uint8), image, reader)
    save = SimpleITK.WriteImage if library == "SimpleITK" else nib.save
    save(back, tmp_path / "labels.nii.gz")
    found, scan = nib.load(tmp_path / "labels.nii.gz"), nib.load(path)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(scan.dataobj) > 0)
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)


def test_the_memory_order_of_the_page_is_that_of_a_scan_in_lps(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, -1, 2, 1])), tmp_path / "lps.nii.gz")
    turned = read_volume([tmp_path / "lps.nii.gz"], "NibabelIOWithReorient")
    assert order_to_text(memory_order_of(turned.voxels)) == "z -y -x"
    assert "`z -y -x` is a NIfTI file in LPS" in PAGE.read_text()


@pytest.mark.live
@linux
@needs_curl
def test_the_lines_of_the_page_segment_a_scan_of_this_repository(tmp_path: Path) -> None:
    for name in ("composition", "composition_scan"):
        shutil.copytree(ROOT / "model_repository" / name, tmp_path / "models" / name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with embedded_server(tmp_path / "models", options=ServerOptions(is_private=False, http_port=0)) as server:
        _, segment, to_nifti, progress = blocks_of(PAGE, "bash")
        for lines in (segment, to_nifti, progress):
            here = lines.replace("http://127.0.0.1:8000", server.http_url or "")
            done = subprocess.run(["bash", "-euc", here], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert '"state":"unknown"' in done.stdout
        words = ["predict", "-i", str(DEMO_SCAN), "-o", str(tmp_path / "labels"), "-m", "composition", "--disable_tta"]
        assert ctseg([*words, "--url", server.url, "--where", "client"]) == 0
    require_equal(nib.load(tmp_path / "labels.nii.gz"), nib.load(tmp_path / "labels" / "STS_025.nii.gz"))


def blocks_of(page: Path, language: str) -> list[str]:
    """Return the code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


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
