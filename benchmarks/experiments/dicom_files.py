"""CT series in DICOM to read: a scan's slices, encoded as scanners and archives do it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.results import DicomEncoding

_COMPRESSORS = {"JPEG lossless": "JPEG", "JPEG 2000 lossless": "JPEG2000"}
"""SimpleITK's names."""
_LOWEST_HU, _HIGHEST = -1024, 4095
"""Air, and what 12 bits hold above it."""


def write_series(scan: Path, folder: Path, encoding: DicomEncoding) -> None:
    """Write a scan as an axial series of 12 bits, a file a slice.

    Args:
        scan: What ITK reads, in HU.
        folder: Made here.
        encoding: How its voxels are encoded.
    """
    import SimpleITK as sitk  # noqa: N813 (its users' name for it)
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True)
    image = sitk.ReadImage(str(scan))
    stored = np.clip(sitk.GetArrayFromImage(image) - _LOWEST_HU, 0, _HIGHEST).astype(np.uint16)
    x, y, z = image.GetSpacing()  # type: ignore[no-untyped-call]
    study, series, frame, *slices = (
        str(generate_uid(entropy_srcs=["ctseg benchmark", str(number)])) for number in range(3 + len(stored))
    )
    for index, plane in enumerate(stored):
        dataset = _slice_of(plane, slices[index], (x, y, z), index)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        _write(dataset, plane, folder / f"{index + 1:04d}", _COMPRESSORS.get(encoding))


def _slice_of(plane: npt.NDArray[np.uint16], uid: str, spacing_mm: tuple[float, float, float], index: int) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.uid import CTImageStorage

    x, y, z = spacing_mm
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", "Benchmark", "1"
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, index + 1
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, f"{index * z:.6f}"]
    dataset.PixelSpacing, dataset.SliceThickness = [f"{y:.6f}", f"{x:.6f}"], f"{z:.6f}"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", str(_LOWEST_HU), "HU"
    return dataset


def _write(dataset: Any, plane: npt.NDArray[np.uint16], path: Path, compressor: str | None) -> None:
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian

    dataset.file_meta = FileMetaDataset()
    if compressor is None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.add_new("PixelData", "OW", plane.tobytes())
    else:
        dataset.file_meta.TransferSyntaxUID, encoded = _encoded(plane, path, compressor)
        dataset.add_new("PixelData", "OB", encapsulate([encoded]))
        dataset["PixelData"].is_undefined_length = True
    dcmwrite(path, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)


def _encoded(plane: npt.NDArray[np.uint16], path: Path, compressor: str) -> tuple[str, bytes]:
    """Return the transfer syntax of a slice that GDCM compressed, and its bytes."""
    import SimpleITK as sitk  # noqa: N813 (its users' name for it)
    from pydicom import dcmread
    from pydicom.encaps import generate_frames

    writer: Any = sitk.ImageFileWriter()  # type: ignore[no-untyped-call]
    writer.SetImageIO("GDCMImageIO")
    writer.SetCompressor(compressor)
    writer.UseCompressionOn()
    writer.SetFileName(str(path))
    writer.Execute(sitk.GetImageFromArray(plane[None]))
    written = dcmread(path)
    return str(written.file_meta.TransferSyntaxUID), next(generate_frames(written.PixelData, number_of_frames=1))
