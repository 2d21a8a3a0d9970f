"""Entries for whole scans: written with their networks, removed before them, never beside another one."""

from pathlib import Path

import pytest

from ctseg.errors import SpecError
from ctseg.serving.entries import list_entries, list_models, read_config, read_entry
from ctseg.serving.scan_entry import SCAN_MODEL, check_scan_entry, publish_scan_entry
from ctseg.serving.upkeep import remove_versions
from tests.support.toy_models import toy_spec, write_toy_entry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_each_version_of_a_network_gets_its_own_and_the_newest_is_served(root: Path) -> None:
    first = write_toy_entry(root, whole_scans=True)
    second = write_toy_entry(root, toy_spec(spacing_mm=(3.0, 2.0, 2.0)), version=2, whole_scans=True)
    config = read_config(root / "toy_scan")
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "ctseg_scan.1": first.digest,
        "ctseg_scan.2": second.digest,
    }
    assert config.version_policy.latest.num_versions == 1
    assert read_config(root / "toy").version_policy.latest.num_versions == 2
    assert config.max_batch_size == 0
    assert versions(root / "toy_scan") == ["1", "2"]
    assert check_scan_entry(root / "toy_scan") == 2
    assert [entry.name for entry in list_entries(root)] == ["toy"]


def test_it_is_written_beside_a_network_that_was_there_and_only_once(root: Path) -> None:
    write_toy_entry(root)
    publish_scan_entry(root, read_entry(root / "toy"))
    before = {path: path.stat().st_mtime_ns for path in (root / "toy_scan").rglob("*")}
    publish_scan_entry(root, read_entry(root / "toy"))
    assert {path: path.stat().st_mtime_ns for path in (root / "toy_scan").rglob("*")} == before
    model = root / "toy_scan" / "1" / "model.py"
    model.write_text("# of another ctseg\n")
    publish_scan_entry(root, read_entry(root / "toy"))
    assert model.read_text() == SCAN_MODEL.read_text()


def test_it_goes_with_its_network(root: Path) -> None:
    for number in (1, 2, 3):
        write_toy_entry(root, version=number, whole_scans=number < 3)
    with pytest.raises(SpecError, match="toy_scan: its newest version is 2, that of toy is 3: whole scans are"):
        check_scan_entry(root / "toy_scan")
    remove_versions(root, "toy", [1])
    assert versions(root / "toy_scan") == ["2"]
    assert list(read_config(root / "toy_scan").parameters) == ["ctseg_scan.2"]
    remove_versions(root, "toy", [2])
    assert list_models(root) == ["toy"]


def test_names_that_end_as_its_name_does_are_refused(root: Path) -> None:
    with pytest.raises(SpecError, match="names that end in _scan are those of entries for whole scans"):
        write_toy_entry(root, toy_spec("ct_scan"))


def test_a_model_that_has_its_name_is_left_alone(root: Path) -> None:
    write_toy_entry(root, toy_spec("other"))
    (root / "other").rename(root / "toy_scan")
    with pytest.raises(
        SpecError, match=r"toy: its whole scans need the name toy_scan, and .* is another model"
    ) as refused:
        write_toy_entry(root, whole_scans=True)
    assert refused.value.settings == ("whole_scans",)
    assert list_models(root) == ["toy_scan"], "nor is a network written that would have none"
    for number in (1, 2):
        write_toy_entry(root, version=number)
    remove_versions(root, "toy", [1])
    assert versions(root / "toy_scan") == ["1"]


def test_one_that_was_written_for_another_network_is_told(root: Path) -> None:
    write_toy_entry(root, whole_scans=True)
    config = root / "toy_scan" / "config.pbtxt"
    config.write_text(config.read_text().replace(toy_spec().digest, "f" * 64))
    with pytest.raises(
        SpecError, match="toy_scan: version 1 was written for the spec ffffffffffff, version 1 of toy has"
    ):
        check_scan_entry(root / "toy_scan")


def test_nothing_packed_goes_in(root: Path) -> None:
    write_toy_entry(root, whole_scans=True)
    tensors = {tensor.name: tensor for tensor in read_config(root / "toy_scan").input}
    assert sorted(tensors) == ["previous_labels", "spacing_mm", "voxels_fp32", "voxels_int16"]
    assert all(len(tensor.dims) > 2 for name, tensor in tensors.items() if name != "spacing_mm"), "no stream of bytes"
