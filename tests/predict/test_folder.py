"""A folder of scans: one bad case never stops the rest, nothing is lost, nothing is half-written."""

import gzip
import json
import os
import resource
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import InputError, OutputError, ServerUnavailableError, SetupError, SpecError
from ctseg.files.cases import find_cases
from ctseg.files.volume import read_volume, read_volume_header
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.progress import Progress
from ctseg.predict.report import Report
from ctseg.predict.segmenter import WindowSegmenter, segment_volume
from tests.support.threshold import ThresholdPredictor, write_scan


class RecordingProgress(Progress):
    """Remembers what it was told of stages."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def stage_began(self, case, stage):
        self.told.append(("began", case, stage))

    def stage_ended(self, case, stage):
        self.told.append(("ended", case, stage))

    def of(self, name):
        return [(event, stage) for event, case, stage in list(self.told) if case == name]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def run(folder: Path, predictor=None, output: str = "out", **options):
    predictor = predictor or ThresholdPredictor()
    cases = find_cases(folder, channels=1)
    return segment_cases(cases, predictor, folder.parent / output, BatchOptions(**options))


def test_volumes_of_labels_are_their_voxels_in_millilitres(folder):
    expected = write_scan(folder / "a.nii.gz")  # voxels of 1 x 2 x 3 mm
    predictor = ThresholdPredictor()
    (case,) = run(folder, predictor).cases
    millilitres = {
        name: int(np.isin(expected, values).sum()) * 0.006 for name, values in predictor.spec.named_values.items()
    }
    assert max(millilitres.values()) > 10
    assert dict(case.volumes_ml) == pytest.approx(millilitres, abs=5e-4)


def test_report_of_the_python_interface_says_who_ran_the_network(folder):
    write_scan(folder / "a.nii.gz")
    predictor = ThresholdPredictor()
    run(folder, predictor)
    report = Report.model_validate_json((folder.parent / "out" / "report.json").read_bytes())
    made_by = report.cases[0].made_by
    assert made_by is not None
    assert (made_by.model, made_by.model_version, made_by.spec_digest) == ("threshold", "7", predictor.spec.digest)
    assert (made_by.servers, made_by.transport) == (("gpu1:8001", "gpu2:8001"), "grpc")


def files_in(output: Path) -> list[str]:
    """Return what stands in an output folder beside the reports and the hidden memory."""
    there = {path.name for path in output.iterdir()}
    assert {".ctseg", "report.json", "report.csv"} <= there
    assert not list((output / ".ctseg" / "runs").iterdir())
    return sorted(there - {".ctseg", "report.json", "report.csv"})


def status_of(report) -> dict[str, str]:
    return {case.case: case.status for case in report.cases}


def test_every_bad_scan_is_named_and_the_good_ones_are_right(folder):
    expected = {name: write_scan(folder / f"{name}.nii.gz", seed=i) for i, name in enumerate(["a", "m", "z"])}
    whole = (folder / "a.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii.gz").write_bytes(gzip.compress(b"no image at all" * 100))
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7, 2), np.int16), np.eye(4)), folder / "four_d.nii.gz")
    nib.save(nib.Nifti1Image(np.full((5, 6, 7), np.nan, np.float32), np.eye(4)), folder / "nan.nii.gz")
    write_scan(folder / "twice.nii.gz")
    write_scan(folder / "twice_0000.nii.gz")

    report = run(folder)

    bad = {"cut", "empty", "text", "four_d", "nan", "twice"}
    assert status_of(report) == {**dict.fromkeys(expected, "ok"), **dict.fromkeys(bad, "failed")}
    for case in report.cases:
        if case.case in bad:
            assert case.error is not None
            assert case.error.type == "InputError"
            assert case.error.message.startswith(f"case {case.case}: ")
            assert not case.outputs
    for name, labels in expected.items():
        written = nib.load(folder.parent / "out" / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(written.dataobj), labels)
        assert written.get_data_dtype() == np.uint8
    assert files_in(folder.parent / "out") == ["a.nii.gz", "m.nii.gz", "z.nii.gz"]


def test_a_constant_and_a_single_slice_volume_are_right(folder):
    nib.save(nib.Nifti1Image(np.full((9, 8, 7), 40, np.int16), np.diag([1.0, 2.0, 3.0, 1.0])), folder / "flat.nii.gz")
    expected = write_scan(folder / "slice.nii.gz", shape=(20, 18, 1))
    assert set(status_of(run(folder)).values()) == {"ok"}
    assert (np.asarray(nib.load(folder.parent / "out" / "flat.nii.gz").dataobj) == 1).all()
    assert np.array_equal(np.asarray(nib.load(folder.parent / "out" / "slice.nii.gz").dataobj), expected)


def test_continuing_skips_what_is_there_and_redoes_what_has_gone(folder):
    for name in ("a", "b", "c"):
        write_scan(folder / f"{name}.nii.gz")
    run(folder)
    (folder.parent / "out" / "c.nii.gz").unlink()
    predictor = ThresholdPredictor()
    report = run(folder, predictor, continue_prediction=True)
    assert status_of(report) == {"a": "skipped", "b": "skipped", "c": "ok"}
    again = run(folder, predictor, continue_prediction=True)
    assert set(status_of(again).values()) == {"skipped"}
    other = ThresholdPredictor(network_sha256="0" * 64)
    assert set(status_of(run(folder, other, continue_prediction=True)).values()) == {"ok"}
    assert other.calls > 0


def test_a_server_that_fails_fails_each_case_by_name(folder):
    for name in ("a", "b"):
        write_scan(folder / f"{name}.nii.gz")
    predictor = ThresholdPredictor()
    predictor.fails_with = ServerUnavailableError("threshold at gpu1:8001: connection refused")
    report = run(folder, predictor)
    assert [case.error.message for case in report.cases] == [
        f"case {name}: threshold at gpu1:8001: connection refused" for name in ("a", "b")
    ]
    assert files_in(folder.parent / "out") == []


def test_a_bug_in_one_case_is_reported_as_unexpected_and_the_rest_goes_on(folder):
    for name in ("a", "b"):
        write_scan(folder / f"{name}.nii.gz")
    predictor = ThresholdPredictor()
    honest = predictor.predict

    def breaks_once(patches):
        if predictor.calls == 0:
            predictor.calls += 1
            raise KeyError("bug")
        return honest(patches)

    predictor.predict = breaks_once
    report = run(folder, predictor)
    assert sorted(status_of(report).values()) == ["failed", "ok"]
    failed = next(case for case in report.cases if case.status == "failed")
    assert "unexpected" in failed.error.message


def test_a_case_that_takes_too_long_fails_by_name(folder):
    write_scan(folder / "slow.nii.gz")
    predictor = ThresholdPredictor()
    predictor.waits_for = threading.Event()
    threading.Timer(1.0, predictor.waits_for.set).start()
    report = run(folder, predictor, case_timeout_s=0.2)
    assert report.cases[0].error.type == "ServerTimeoutError"
    assert "case slow" in report.cases[0].error.message
    assert "allow the case more time" in report.cases[0].error.message
    assert "--" not in report.cases[0].error.message


def test_probabilities_are_those_of_the_softmax_and_there_only_when_whole(folder):
    write_scan(folder / "a.nii.gz")
    run(folder, save_probabilities=True)
    out = folder.parent / "out"
    probabilities = np.load(out / "a.npz")["probabilities"]
    voxels = np.asarray(nib.load(folder / "a.nii.gz").dataobj).astype(np.float32).transpose(2, 1, 0)
    # the one voxel in a thousand that is zero lies inside the crop, where the two heads tie
    expected = 1 / (1 + np.exp(-voxels.astype(np.float64)))
    assert probabilities.shape == (2, *voxels.shape)
    assert np.abs(probabilities[1] - expected).max() < 1e-6
    assert np.abs(probabilities.sum(axis=0) - 1).max() < 1e-6
    assert files_in(out) == ["a.nii.gz", "a.npz"]


def test_regions_or_labels_that_cannot_be_written_are_told_before_any_work(folder):
    write_scan(folder / "a.nii.gz")
    predictor = ThresholdPredictor()
    predictor.spec = predictor.spec.model_copy(update={"file_ending": ".gipl"})
    with pytest.raises(SpecError, match=r"\.gipl"):
        run(folder, predictor)
    assert predictor.calls == 0


@pytest.mark.parametrize("output", ["in", "link"])
def test_no_label_map_takes_the_place_of_a_scan(folder, output):
    write_scan(folder / "a_0000.nii.gz")
    write_scan(folder / "b.nii.gz")
    (folder.parent / "link").symlink_to(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SetupError, match=r"b\.nii\.gz would overwrite a scan"):
        run(folder, output=output)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_output_folder_that_cannot_be_made_is_an_output_error(folder):
    write_scan(folder / "a.nii.gz")
    (folder.parent / "out").write_text("a file is in the way")
    with pytest.raises(OutputError, match="out"):
        run(folder)


def test_a_file_that_outgrows_its_limit_fails_the_case_and_keeps_the_report_valid(folder):
    write_scan(folder / "small.nii.gz", shape=(8, 8, 8))
    write_scan(folder / "large.nii.gz", shape=(96, 96, 64))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a full disk for whom mounting one is not allowed
    try:
        report = run(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status_of(report) == {"large": "failed", "small": "ok"}
    failed = next(case for case in report.cases if case.case == "large")
    assert failed.error.type == "OutputError"
    assert "File too large" in failed.error.message
    out = folder.parent / "out"
    assert json.loads((out / "report.json").read_text())["cases"]
    assert files_in(out) == ["small.nii.gz"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="NEEDS ROOT: mounts a full disk")
def test_a_full_disk_fails_the_case_and_keeps_the_report_valid(folder):
    write_scan(folder / "small.nii.gz", shape=(8, 8, 8))
    write_scan(folder / "large.nii.gz", shape=(96, 96, 64))
    out = folder.parent / "out"
    out.mkdir()
    if os.system(f"mount -t tmpfs -o size=48k tmpfs {out} 2>/dev/null") != 0:
        pytest.skip("NO MOUNT: this machine does not let tests mount a small disk")
    try:
        report = run(folder)
        assert status_of(report) == {"large": "failed", "small": "ok"}
        failed = next(case for case in report.cases if case.case == "large")
        assert failed.error.type == "OutputError"
        assert "No space left" in failed.error.message
        assert json.loads((out / "report.json").read_text())["cases"]
        assert files_in(out) == ["small.nii.gz"]
    finally:
        os.system(f"umount {out}")


def estimate_of(scan: Path, predictor) -> int:
    segmenter = WindowSegmenter(predictor)
    try:
        header = read_volume_header([scan], predictor.spec.reader)
        return segmenter.estimate(header, saves_probabilities=False).peak_bytes
    finally:
        segmenter.close()


def test_a_scan_that_waits_for_memory_is_not_read_before_it_is_there(folder):
    """Three scans, memory for one and a half: two of them are headers only while the first is segmented."""
    expected = {name: write_scan(folder / f"{name}.nii.gz", seed=i) for i, name in enumerate("abc")}
    predictor, progress, reports = ThresholdPredictor(), RecordingProgress(), []
    predictor.waits_for = threading.Event()
    options = BatchOptions(memory_bytes=estimate_of(folder / "a.nii.gz", predictor) * 3 // 2)
    cases = find_cases(folder, channels=1)
    runner = threading.Thread(
        target=lambda: reports.append(
            segment_cases(cases, predictor, folder.parent / "out", options, progress=progress)
        )
    )
    runner.start()
    header = ("began", "read"), ("ended", "read")
    deadline = time.monotonic() + 300
    while {predictor.calls > 0, *(progress.of(name)[:2] == [*header] for name in "abc")} != {True}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sorted(len(progress.of(name)) > 2 for name in "abc") == [False, False, True]
    predictor.waits_for.set()
    runner.join()
    assert set(status_of(reports[0]).values()) == {"ok"}
    for name, labels in expected.items():
        written = nib.load(folder.parent / "out" / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(written.dataobj), labels)


@pytest.mark.parametrize("spacing", [39, 50, 100, "metres"])
def test_a_scan_of_wrong_spacing_is_refused_by_name_and_the_others_are_done(folder, spacing):
    """By its header: its voxels are damaged, and nobody looks."""
    for name in "acdefg":
        write_scan(folder / f"{name}.nii.gz", shape=(12, 12, 8))
    voxels = np.zeros((60, 64, 40), np.int16)
    image = nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0] if spacing == "metres" else [spacing] * 3 + [1.0]))
    image.header.set_xyzt_units("meter" if spacing == "metres" else "mm")
    nib.save(image, folder / "b.nii.gz")
    content = (folder / "b.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(content[:-8] + bytes(8))
    report = run(folder, memory_bytes=256 << 20)
    assert status_of(report) == {name: "failed" if name == "b" else "ok" for name in "abcdefg"}
    bad = next(case for case in report.cases if case.case == "b")
    shape = {39: "520 x 1248 x 2340", 50: "667 x 1600 x 3000", 100: "1333 x 3200 x 6000"}
    assert bad.error.type == "InputError"
    assert bad.error.settings == ("memory_bytes",)
    assert f"{shape.get(spacing, '40000 x 64000 x 60000')} voxels (z, y, x)" in bad.error.message
    assert "in 0.25 GB (allowed)" in bad.error.message
    assert "is the spacing in the file right?" in bad.error.message


def test_memory_that_the_user_names_counts_both_ways(folder):
    write_scan(folder / "a.nii.gz")
    size = estimate_of(folder / "a.nii.gz", ThresholdPredictor())
    assert status_of(run(folder, memory_bytes=size)) == {"a": "ok"}
    assert status_of(run(folder, memory_bytes=size - 1)) == {"a": "failed"}
    assert status_of(run(folder, memory_bytes=1 << 50)) == {"a": "ok"}


@pytest.mark.parametrize(("mirroring", "requests"), [(False, 1), (True, 4)])
def test_bytes_are_those_of_all_requests(folder, mirroring, requests):
    write_scan(folder / "a.nii.gz")
    predictor = ThresholdPredictor()
    predictor.spec = predictor.spec.model_copy(update={"mirror_axes": (0, 2), "mirroring": "client"})
    case = run(folder, predictor, mirroring=mirroring).cases[0]
    patch_bytes = 8 * 16 * 16 * 4
    assert case.windows > 1
    assert case.bytes_sent == case.windows * patch_bytes * requests
    assert case.bytes_received == 2 * case.bytes_sent
    assert predictor.calls == -(-case.windows // 2) * requests


def test_progress_is_told_of_every_stage_of_every_case(folder):
    for name in "ab":
        write_scan(folder / f"{name}.nii.gz")
    recorder = RecordingProgress()
    predictor = ThresholdPredictor()
    segment_cases(find_cases(folder, channels=1), predictor, folder.parent / "out", BatchOptions(), progress=recorder)
    for name in "ab":
        told = recorder.of(name)
        assert told[:2] == [("began", "read"), ("ended", "read")]  # its headers
        assert told[2:6] == [("began", "read"), ("ended", "read"), ("began", "prepare"), ("ended", "prepare")]
        assert told[-2:] == [("began", "write"), ("ended", "write")]
        middle = told[6:-2]
        assert {stage for _, stage in middle} == {"network", "restore"}
        assert [event for event, _ in middle] == ["began", "ended"] * (len(middle) // 2)


def test_windows_that_wait_are_dropped_when_the_case_fails(folder, monkeypatch):
    write_scan(folder / "a.nii.gz", shape=(40, 50, 40))
    predictor = ThresholdPredictor()

    def fail(self, slab):
        raise InputError("the slab cannot be restored")

    monkeypatch.setattr("ctseg.predict.segment.LabelRestorer.add", fail)
    scan = read_volume([folder / "a.nii.gz"], predictor.spec.reader)
    dropped = []
    really = Future.cancel
    monkeypatch.setattr(Future, "cancel", lambda future: dropped.append(future) or really(future))
    with pytest.raises(InputError, match="cannot be restored") as caught:
        segment_volume(scan, predictor)
    assert dropped, "batches were on their way"
    assert caught.value.__traceback__ is not None  # the traceback lives, and kept nothing waiting


def test_scans_that_cannot_be_opened_fail_by_name_and_the_others_go_on(folder):
    expected = write_scan(folder / "good.nii.gz")
    (folder / "link.nii.gz").symlink_to("good.nii.gz")
    (folder / "self.nii.gz").symlink_to("self.nii.gz")
    (folder / "gone.nii.gz").symlink_to("/nowhere/scan.nii.gz")
    (folder / "zero.nii.gz").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.nii.gz")
    report = run(folder)
    assert status_of(report) == {
        "good": "ok", "link": "ok", "gone": "failed", "pipe": "failed", "self": "failed", "zero": "failed",
    }  # fmt: skip
    errors = {case.case: case.error for case in report.cases if case.error is not None}
    assert {error.type for error in errors.values()} == {"InputError"}
    for name, why in {
        "gone": "No such file or directory: a link to /nowhere/scan.nii.gz", "pipe": "is a named pipe, not a file",
        "self": "Too many levels of symbolic links", "zero": "is a device, not a file",
    }.items():  # fmt: skip
        assert errors[name].message.startswith(f"case {name}: ")
        assert f"{name}.nii.gz: cannot be read: {why}" in errors[name].message
    for name in ("good", "link"):
        written = nib.load(folder.parent / "out" / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(written.dataobj), expected)


def test_a_pipe_in_the_place_of_a_label_map_is_not_waited_for_and_kept(folder):
    write_scan(folder / "a.nii.gz")
    (folder.parent / "out").mkdir()
    os.mkfifo(folder.parent / "out" / "a.nii.gz")
    assert status_of(run(folder)) == {"a": "kept"}
    assert (folder.parent / "out" / "a.nii.gz").is_fifo()
    assert status_of(run(folder, overwrite=True)) == {"a": "ok"}
    assert (folder.parent / "out" / "a.nii.gz").is_file()


@pytest.mark.parametrize("letter", ["n", "ä", "漢"])
def test_every_name_that_fits_is_segmented_and_the_others_are_told_before_any_work(folder, letter):
    stem = letter * (248 // len(letter.encode()))
    expected = write_scan(folder / f"{stem}.nii.gz")
    too_long = f"{letter * (251 // len(letter.encode()))}"
    write_scan(folder / f"{too_long}.nii")
    predictor = ThresholdPredictor()
    report = run(folder, predictor, save_probabilities=True)
    outcomes = {case.case: case for case in report.cases}
    assert outcomes[stem].status == "ok"
    written = nib.load(folder.parent / "out" / f"{stem}.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), expected)
    size = len(f"{too_long}.nii.gz".encode())
    if size > 255:
        assert outcomes[too_long].error.type == "InputError"
        assert f"would have a name of {size} bytes, and the output folder takes 255" in outcomes[too_long].error.message


def test_label_maps_that_need_a_missing_package_are_told_before_any_work(folder, monkeypatch):
    write_scan(folder / "a.nii.gz")
    predictor = ThresholdPredictor()
    predictor.spec = predictor.spec.model_copy(update={"file_ending": ".mha"})
    assert set(status_of(run(folder, predictor)).values()) == {"ok"}
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    predictor.calls = 0
    with pytest.raises(SetupError, match=r"a \.mha file needs SimpleITK.* extra 'itk'"):
        run(folder, predictor, output="again")
    assert predictor.calls == 0
    assert not (folder.parent / "again").exists()


def test_cases_that_need_a_missing_package_fail_by_name(folder, monkeypatch):
    write_scan(folder / "a.nii.gz")
    (folder / "b.mha").touch()
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    report = run(folder)
    assert status_of(report) == {"a": "ok", "b": "failed"}
    assert "case b: b.mha: a .mha file needs SimpleITK" in report.cases[1].error.message


def test_a_case_for_which_memory_does_not_suffice_fails_by_name(folder):
    write_scan(folder / "a.nii.gz")
    predictor = ThresholdPredictor()
    predictor.fails_with = MemoryError("Unable to allocate 6.6 GiB")
    error = run(folder, predictor).cases[0].error
    assert error.type == "MemoryError"
    assert error.message.startswith("case a: the memory did not suffice (Unable to allocate 6.6 GiB): look whether")
