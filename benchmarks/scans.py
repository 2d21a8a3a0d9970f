"""Scans to measure with, as NIfTI files under nnU-Net's names: given ones, and larger ones made from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from benchmarks.results import Scan
from ctseg.errors import InputError

AS_GIVEN = "as given"
_TINY = (16, 48, 48)
_ENDING = "_0000.nii.gz"


@dataclass(frozen=True)
class ScanFolder:
    """Scans as NIfTI files in one folder.

    Attributes:
        folder: Where they are.
        small: Those as given first.
        large: A whole chest and what was made from it, smallest first; perhaps none.
    """

    folder: Path
    small: tuple[Scan, ...]
    large: tuple[Scan, ...]

    @property
    def given(self) -> tuple[Scan, ...]:
        """The small scans that were not made from others."""
        return tuple(scan for scan in self.small if scan.origin == AS_GIVEN)

    def file(self, scan: Scan) -> Path:
        """Return the file of a scan."""
        return scan_file(scan, self.folder)


def collect_scans(folder: Path, target: Path, large: Path | None, *, more: bool, large_planes: int = 400) -> ScanFolder:
    """Put the scans into a folder.

    Args:
        folder: CT scans of one channel, ``<case>_0000.nii.gz``.
        target: Folder to fill.
        large: A CT of a whole chest, any format that ITK reads; None: none.
        more: Make more: mirrored ones, and one as long as a whole body.
        large_planes: Planes of that one.

    Raises:
        InputError: There is no scan, or one cannot be read.
    """
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob(f"*{_ENDING}"))
    if not files:
        raise InputError(
            f"{folder}: expected CT scans named <case>{_ENDING}, found none: give another folder", settings=("input",)
        )
    small, big = [], []
    for file in files:
        voxels, spacing = _read(file)
        name = file.name.removesuffix(_ENDING)
        small.append(_write(target, name, voxels, spacing, AS_GIVEN))
        if more:
            mirrored = voxels[::-1, :, ::-1]
            small.append(_write(target, f"{name}_mirrored", mirrored, spacing, "mirrored along z and x"))
            small.append(_write(target, f"{name}_turned", voxels[:, ::-1, ::-1], spacing, "mirrored along y and x"))
    if large is not None:
        voxels, spacing = _read(large)
        big.append(_write(target, "chest", voxels, spacing, large.name))
        if more:
            big.append(_write(target, "chest_mirrored", voxels[::-1, :, ::-1], spacing, f"{large.name}, mirrored"))
            long, step_mm = _lengthened(voxels, spacing[0], large_planes)
            what = f"{large.name}, planes interpolated to {step_mm:.2f} mm and continued by reflection"
            big.append(_write(target, "long", long, (step_mm, *spacing[1:]), what))
    small.sort(key=lambda scan: scan.origin != AS_GIVEN)
    return ScanFolder(target, tuple(small), tuple(big))


def write_tiny_scan(source: Path, target: Path) -> Scan:
    """Cut the middle of a scan, small enough for one window of every network here.

    Args:
        source: NIfTI file.
        target: Folder to write it into.
    """
    voxels, spacing = _read(source)
    box = tuple(
        slice((size - min(size, side)) // 2, (size + min(size, side)) // 2)
        for size, side in zip(voxels.shape, _TINY, strict=True)
    )
    target.mkdir(parents=True, exist_ok=True)
    return _write(target, "tiny", voxels[box], spacing, "the middle of a scan")


def link_scans(scans: Sequence[Scan], source: Path, target: Path, *, copies: int = 1) -> Path:
    """Make a folder of links to some of the scans, each as often as asked.

    Returns:
        ``target``.
    """
    target.mkdir(parents=True, exist_ok=True)
    for scan in scans:
        for copy in range(copies):
            name = scan.case if copies == 1 else f"{scan.case}_{copy}"
            (target / f"{name}{_ENDING}").symlink_to((source / f"{scan.case}{_ENDING}").resolve())
    return target


def scan_file(scan: Scan, folder: Path) -> Path:
    """Return the file of a scan."""
    return folder / f"{scan.case}{_ENDING}"


def megavoxels(scans: Sequence[Scan]) -> float:
    """Return the voxels of some scans together, in millions."""
    return sum(float(np.prod(scan.shape)) for scan in scans) / 1e6


def _lengthened(voxels: npt.NDArray[np.int16], step_mm: float, planes: int) -> tuple[npt.NDArray[np.int16], float]:
    """Interpolate along z to at most 1 mm, then continue by reflection until there are so many planes."""
    factor = max(1, round(step_mm))
    positions = np.arange((len(voxels) - 1) * factor + 1) / factor
    below = np.minimum(positions.astype(np.int64), len(voxels) - 2)
    order = np.arange(planes) % (2 * len(positions) - 2)
    order = np.where(order < len(positions), order, 2 * len(positions) - 2 - order)
    long = np.empty((planes, *voxels.shape[1:]), np.int16)
    for plane, place in enumerate(order):
        share = positions[place] - below[place]
        long[plane] = np.rint((1 - share) * voxels[below[place]] + share * voxels[below[place] + 1])
    return long, step_mm / factor


def _read(path: Path) -> tuple[npt.NDArray[np.int16], tuple[float, float, float]]:
    """Return HU (z, y, x) and the spacing along (z, y, x)."""
    import SimpleITK as sitk  # noqa: N813 (its users' name for it)

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    x, y, z = image.GetSpacing()  # type: ignore[no-untyped-call]
    return np.rint(sitk.GetArrayFromImage(image)).astype(np.int16), (z, y, x)


def _write(
    folder: Path, name: str, voxels: npt.NDArray[np.int16], spacing_mm: tuple[float, float, float], origin: str
) -> Scan:
    z, y, x = spacing_mm
    image = nib.Nifti1Image(np.asfortranarray(voxels.transpose(2, 1, 0)), np.diag([-x, -y, z, 1.0]))
    nib.save(image, folder / f"{name}{_ENDING}")
    depth, rows, columns = voxels.shape
    return Scan(case=name, shape=(depth, rows, columns), spacing_mm=spacing_mm, origin=origin)
