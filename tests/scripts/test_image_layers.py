"""What an image carries is read from its layers: what a later one hides is in it all the same."""

import io
import tarfile

import pytest

from scripts.check_images.layers import files_in_layers, patient_data_in


def archive_of(mode: str, **files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("compression", ["", "gz"])
def test_every_layer_is_read_also_what_a_later_one_removes(compression: str) -> None:
    first = archive_of(f"w:{compression}", **{"bundles/m/parity/case.npy": b"voxels", "bundles/m/model.onnx": b"x"})
    second = archive_of(f"w:{compression}", **{"bundles/m/.wh.parity": b"", "./etc/hosts": b""})
    image = archive_of("w", **{"1.tar": first, "manifest.json": b'[{"Layers": ["1.tar", "2.tar"]}]', "2.tar": second})
    found = list(files_in_layers(io.BytesIO(image)))
    assert found == ["/bundles/m/parity/case.npy", "/bundles/m/model.onnx", "/bundles/m/.wh.parity", "/etc/hosts"]
    assert patient_data_in(found) == ["/bundles/m/parity/case.npy"]


def test_neither_the_phantom_nor_a_module_is_patient_data() -> None:
    paths = ["/bundles/m/parity_phantom/case.npy", "/bundles/m/parity.json", "/opt/ctseg/deploy/parity.py"]
    assert patient_data_in([*paths, "/bundles/m/parity"]) == ["/bundles/m/parity"]
