"""DICOM series through a real server: the same files whichever way they take."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import highdicom as hd
import nibabel as nib
import numpy as np
import pytest

from ctseg.cli.main import main as ctseg
from ctseg.files.dicom.quiet import quiet
from ctseg.model_spec import Channel, IntensityProperties
from ctseg.predict.options import BatchOptions
from ctseg.predict.parts import Part
from ctseg.predict.report import Report
from ctseg.runs.dask import segment_folder_on_dask
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel
from ctseg.serving.entries import read_entry
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.publish import EntryDraft, publish
from ctseg.serving.scan_entry import publish_scan_entry
from ctseg.serving.server import embedded_server
from ctseg.triton.options import ClientOptions
from tests.support.dicom_results import LIVER, TUMOUR
from tests.support.dicom_series import OBLIQUE, ct_series, write_series
from tests.support.toy_models import save_toy_network, toy_spec

pytestmark = pytest.mark.live

FORMATS = ("nifti", "dicom_seg", "dicom_rtstruct", "dicom_sr")
VARIABLE = "CTSEG_TEST_TRITON_KEY"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dicom") / "models"
    intensity = IntensityProperties(mean=0, std=500, percentile_00_5=-1000, percentile_99_5=2000)
    channel = Channel(name="CT", normalization="CTNormalization", intensity=intensity)
    spec = toy_spec("ct", channels=(channel,), presentation={"liver": LIVER, "tumour": TUMOUR})
    network = save_toy_network(root.parent / "ct.onnx", weights=np.array([[-1.0], [0.5], [1.0]], np.float32))
    publish(root, EntryDraft(spec=spec, backend="python", model_file=network), 1)
    publish_scan_entry(root, read_entry(root / "ct"))
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with embedded_server(repository, options=ServerOptions(prove=False)) as running:
        yield running


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series, one of them with its twin in NIfTI."""
    folder = tmp_path_factory.mktemp("scans")
    oblique = ct_series((9, 20, 24), orientation=OBLIQUE, series=1)
    write_series(folder / "a", oblique.datasets)
    write_series(folder / "b", ct_series((7, 14, 16), series=2).datasets)
    nib.save(nib.Nifti1Image(oblique.hu.T.astype(np.int16), oblique.affine_ras), folder / "twin.nii.gz")
    return folder


def recursive(**options: Any) -> BatchOptions:
    return BatchOptions(output_formats=FORMATS, recursive=True, **options)


def written(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.suffix in (".gz", ".dcm")}


Way = Callable[[Path, Path, RunningServer], Report]


def served(server: RunningServer, where: Any = "client") -> ServedModel:
    return ServedModel("ct", (server.url,), client=ClientOptions(headers=server.headers), where=where)


def whole(scans: Path, output: Path, server: RunningServer) -> Report:
    return segment_folder(scans, output, served(server, "server"), recursive())


def in_parts(scans: Path, output: Path, server: RunningServer) -> Report:
    segment_folder(scans, output, served(server), recursive(part=Part(1, 2)))
    segment_folder(scans, output, served(server), recursive(part=Part(0, 2)))
    return Report.model_validate_json((output / "report.json").read_bytes())


@pytest.fixture(scope="module")
def expected(scans: Path, server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What windows that are cut here give."""
    output = tmp_path_factory.mktemp("client")
    report = segment_folder(scans, output, served(server), recursive())
    assert [case.status for case in report.cases] == ["ok"] * 3
    twin, *objects = (nib.load(path) for path in sorted(output.glob("*.nii.gz"), reverse=True))
    (same,) = (image for image in objects if image.shape == twin.shape)
    labels = np.asarray(twin.dataobj)
    assert len(np.unique(labels)) > 1
    assert np.array_equal(labels, np.asarray(same.dataobj))
    return written(output)


@pytest.mark.parametrize("way", [whole, in_parts])
def test_every_way_writes_the_same_files(
    scans: Path, server: RunningServer, tmp_path: Path, expected: dict[str, bytes], way: Way
) -> None:
    way(scans, tmp_path, server)
    assert written(tmp_path) == expected
    assert sum(name.endswith(".dcm") for name in expected) == 6


def test_a_real_series_has_the_labels_of_its_twin_in_nifti(
    shared_data: Path, server: RunningServer, tmp_path: Path
) -> None:
    for name in ("sts_sarcoma_dicom/STS_042", "sts_sarcoma/test/STS_042_ct.nii.gz"):
        segment_folder(shared_data / name, tmp_path, served(server), BatchOptions(tile_step_size=1.0))
    dicom, twin = (nib.load(path) for path in sorted(tmp_path.glob("*.nii.gz"), reverse=True))
    labels = np.asarray(twin.dataobj)
    assert len(np.unique(labels)) > 1
    assert np.array_equal(np.asarray(dicom.dataobj), labels)
    np.testing.assert_allclose(dicom.affine, twin.affine, atol=2e-5)


def test_objects_call_labels_as_the_served_spec_does(expected: dict[str, bytes], tmp_path: Path) -> None:
    name = next(name for name in expected if name.endswith(".seg.dcm"))
    (tmp_path / name).write_bytes(expected[name])
    with quiet():
        segmentation = hd.seg.segread(tmp_path / name)
        types = [segmentation.get_segment_description(number).segmented_property_type for number in (1, 2)]
    assert [type_.value for type_ in types] == [LIVER.type.value, TUMOUR.type.value]


def test_dask_workers_write_the_same_files(
    scans: Path, server: RunningServer, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ServedModel("ct", (server.url,), where="client")
    (key,) = server.headers.values()
    monkeypatch.setenv(VARIABLE, key)
    variables = dict.fromkeys(server.headers, VARIABLE)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        segment_folder_on_dask(scans, tmp_path, model, recursive(), client, header_variables=variables)
    assert written(tmp_path) == expected


def test_the_command_says_which_formats_failed_and_exits_1(
    scans: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "-i", scans, "-o", tmp_path, "-m", "ct", "--repository", repository, "--recursive"]
    assert ctseg([*map(str, words), "--output_format", "nifti", "dicom_seg"]) == 1
    told = capsys.readouterr()
    assert "3 done, 0 skipped, 0 failed, 1 without dicom_seg" in told.out
    assert "failed: dicom_seg: twin" in told.err
