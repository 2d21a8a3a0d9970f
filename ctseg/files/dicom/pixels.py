"""Voxels of a DICOM series, on the one grid that its headers describe."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.compiled.parallel import num_threads, run_parallel
from ctseg.errors import InputError
from ctseg.files.dicom.codecs import WORKING_BYTES, require_decoder, scratch_folder, silent_itk
from ctseg.files.dicom.elements import numbers_of
from ctseg.files.dicom.kinds import COMPRESSED, CT, DEFLATED, UNCOMPRESSED
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.series import CtSeries, CtSlice, uid_digest
from ctseg.files.dicom.stored_numbers import CHANGED, DEFLATED_HEADER_BYTES, START_BYTES, FrameError, FrameFile
from ctseg.files.geometry import RAS_FROM_LPS, Reorientation
from ctseg.files.grid import ChannelHeader, ChannelVolume, DicomSource, FileGrid, reorientation_of

_AGAIN = "take the series from where it comes from again"
_POSITION_TOLERANCE_MM = 1e-3
_AS_THEY_LIE = ("SimpleITKIO", "NibabelIO")
"""Readers that turn no axes."""
_ROWS_UP = Reorientation(flipped=(False, True, False))
_HEADER_BYTES = 4 * START_BYTES
"""What a header takes while it is looked at."""
_COPIES_WHOLE, _COPIES_OF_A_SLICE = 2, 6
"""Of compressed bytes: of a whole file while it is cut into slices, of a slice while it is decoded."""


def read_series(series: CtSeries, reader: str) -> ChannelVolume:
    """Read the voxels of a series in Hounsfield units.

    Uncompressed slices are read straight into the volume, compressed ones are decoded by SimpleITK one by one; slope
    and intercept of each slice are applied to the stored numbers here, once.

    Args:
        series: As its headers were read.
        reader: By whose rules its axes are turned, see :func:`ctseg.files.volume.read_volume`.

    Returns:
        Where every slope and intercept is a whole number, the smallest of int16 and int32 that holds whatever the
        slices may store, padding values too; else float32, rounded once from float64.

    Raises:
        InputError: The series has a problem, or a file is cut off, cannot be decoded, or has changed.
        SetupError: A package is missing, or the folder for temporary files cannot be written.
    """
    header = read_series_header(series, reader)
    try:
        voxels = np.empty(header.grid.geometry.shape, header.dtype)
        _fill(voxels, series)
    except MemoryError:
        raise InputError(f"{series.label}: does not fit into memory: use a machine with more") from None
    return ChannelVolume(header.grid.reorientation.apply(voxels), header.spacing_mm, header.grid)


def read_series_header(series: CtSeries, reader: str) -> ChannelHeader:
    """Say what :func:`read_series` would yield, without reading the voxels.

    Args:
        series: As its headers were read.
        reader: See :func:`read_series`.

    Raises:
        InputError: The series has a problem, or a file is not there.
        SetupError: A package is missing.
    """
    _check_can_be_read(series)
    grid, dtype = _grid_of(series, reader), _yielded_dtype(series)
    spacing_mm = grid.reorientation.apply_to_spacing(grid.spacing_mm)
    return ChannelHeader(dtype, spacing_mm, grid, _reading_bytes(series, dtype))


def _check_can_be_read(series: CtSeries) -> None:
    if series.problem is not None:
        raise InputError(f"{series.label}: {series.problem}")
    syntaxes = _syntaxes_of(series)
    if not syntaxes <= {*UNCOMPRESSED, *COMPRESSED}:
        raise InputError(
            f"{series.label}: expected a transfer syntax that SimpleITK decodes, found another: export the series "
            "uncompressed"
        )
    if not syntaxes <= set(UNCOMPRESSED):
        require_decoder()
    scaling = [(slice_.slope, slice_.intercept) for slice_ in series.slices]
    if not np.isfinite(scaling).all() or not all(slope for slope, _ in scaling):
        raise InputError(
            f"{series.label}: expected a slope other than 0 and an intercept for each slice, found "
            f"{sorted(set(scaling))[:3]}: {_AGAIN}"
        )


def _syntaxes_of(series: CtSeries) -> set[str]:
    return {slice_.transfer_syntax_uid for slice_ in series.slices}


def _grid_of(series: CtSeries, reader: str) -> FileGrid:
    try:
        geometry = series.geometry
    except ValueError as error:
        raise InputError(f"{series.label}: {error}: {_AGAIN}") from error
    along_x, along_y = np.array(series.orientation_lps[:3]), np.array(series.orientation_lps[3:])
    direction_ras = RAS_FROM_LPS @ np.column_stack([along_x, along_y, np.cross(along_x, along_y)])
    step_mm = float(np.linalg.norm(geometry.affine_ras[:3, 2]))
    # as NIfTI holds it: else sizes at the network's spacing that lie halfway would round otherwise than there
    z, y, x = (float(np.float32(side_mm)) for side_mm in (step_mm, *series.pixel_spacing_mm))
    source = DicomSource(series, series.dtype)
    reorientation = reorientation_of(geometry, reader, direction_ras)
    if series.rows_up and reader in _AS_THEY_LIE:
        reorientation = _ROWS_UP
    return FileGrid(geometry, (z, y, x), reorientation, source)


def _yielded_dtype(series: CtSeries) -> "np.dtype[Any]":
    scalings = {(slice_.slope, slice_.intercept) for slice_ in series.slices}
    if all(number.is_integer() for scaling in scalings for number in scaling):
        values = [slope * end + intercept for slope, intercept in scalings for end in _stored_range(series)]
        for dtype in (np.dtype(np.int16), np.dtype(np.int32)):
            if np.iinfo(dtype).min <= min(values) and max(values) <= np.iinfo(dtype).max:
                return dtype
    return np.dtype(np.float32)


def _stored_range(series: CtSeries) -> tuple[int, int]:
    info = np.iinfo(series.dtype)
    return series.stored_range or (int(info.min), int(info.max))


def _reading_bytes(series: CtSeries, dtype: "np.dtype[Any]") -> int:
    """Return the most memory that is held: the volume, shared files, and what each thread has in hand."""
    stored_bytes = series.dtype.itemsize
    plane = series.rows * series.columns
    working = _HEADER_BYTES + plane * (0 if dtype == np.dtype(np.int16) and stored_bytes == 2 else stored_bytes + 8)
    whole = shared = 0
    for path, slices in _slices_by_path(series).items():
        syntax = slices[0].transfer_syntax_uid
        if syntax in UNCOMPRESSED and syntax != DEFLATED:
            continue
        size = _size_of(path, series)
        if syntax == DEFLATED:
            of_file = size + 2 * (len(slices) * plane * stored_bytes + DEFLATED_HEADER_BYTES)
        else:
            of_file = _COPIES_WHOLE * size
            of_slice = size if len(slices) == 1 else min(size, 2 * plane * stored_bytes)
            working = max(working, _HEADER_BYTES + plane * WORKING_BYTES + _COPIES_OF_A_SLICE * of_slice)
        if len(slices) == 1:
            whole = max(whole, of_file)
        else:
            shared += of_file
    threads = min(num_threads(), len(series.slices))
    return len(series.slices) * plane * dtype.itemsize + shared + threads * (whole + working)


def _slices_by_path(series: CtSeries) -> dict[Path, list[CtSlice]]:
    slices: dict[Path, list[CtSlice]] = {}
    for slice_ in series.slices:
        slices.setdefault(slice_.path, []).append(slice_)
    return slices


def _size_of(path: Path, series: CtSeries) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{series.label}: {_unreadable(error)}: {CHANGED}") from None


def _unreadable(error: OSError) -> str:
    """Return what is wrong with a file, without its name."""
    if isinstance(error, FileNotFoundError):  # whose text may name what a link points to
        return "expected a file, found none"
    return f"expected a file, found one that cannot be read ({error.strerror or type(error).__name__})"


def _fill(voxels: npt.NDArray[Any], series: CtSeries) -> None:
    """Read every slice into its place."""
    several = Counter(slice_.path for slice_ in series.slices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        folder = Path()
        if not _syntaxes_of(series) <= set(UNCOMPRESSED):
            stack.enter_context(silent_itk())
            folder = stack.enter_context(scratch_folder())
        shared: dict[Path, FrameFile] = {}
        for z, slice_ in enumerate(series.slices):
            if several[slice_.path] > 1 and slice_.path not in shared:
                with _naming(series, z):
                    shared[slice_.path] = stack.enter_context(_opened(series, slice_, several[slice_.path]))

        def read(first: int, last: int) -> None:
            for z in range(first, last):
                slice_, scratch = series.slices[z], folder / f"{z}.dcm"
                with _naming(series, z):
                    if slice_.path in shared:
                        _read_slice(voxels[z], slice_, shared[slice_.path], scratch)
                        continue
                    with _opened(series, slice_, 1) as file:
                        if series.sop_class_uid == CT:
                            _check_unchanged(file, slice_)
                        _read_slice(voxels[z], slice_, file, scratch)

        run_parallel(read, len(voxels))


def _opened(series: CtSeries, slice_: CtSlice, slices: int) -> FrameFile:
    """Open the file of a slice, and refuse one that is not the one whose headers were read."""
    voxel_bytes = slices * series.rows * series.columns * series.dtype.itemsize
    file = FrameFile(slice_.path, slice_.transfer_syntax_uid, voxel_bytes)
    lowest, highest = _stored_range(series)
    if file.sop_instance_uid != slice_.sop_instance_uid:
        problem = FrameError("the instance that it was", "another", CHANGED)
    elif (file.form.rows, file.form.columns) != (series.rows, series.columns):
        found = f"{file.form.rows} and {file.form.columns}"
        problem = FrameError(f"{series.rows} rows and {series.columns} columns", found, CHANGED)
    elif file.form.range[0] < lowest or file.form.range[1] > highest:
        found = f"{file.form.range[0]} to {file.form.range[1]}"
        problem = FrameError(f"numbers from {lowest} to {highest}", found, CHANGED)
    else:
        return file
    file.close()
    raise problem


def _check_unchanged(file: FrameFile, slice_: CtSlice) -> None:
    """Refuse a file of one slice whose place or scaling is not what it was."""
    for keyword, numbers, tolerance in (
        ("ImagePositionPatient", slice_.position_lps_mm, _POSITION_TOLERANCE_MM),
        ("RescaleSlope", (slice_.slope,), 0.0),
        ("RescaleIntercept", (slice_.intercept,), 0.0),
    ):
        found = numbers_of(file.header, keyword, len(numbers))
        if found is None or any(abs(a - b) > tolerance for a, b in zip(found, numbers, strict=True)):
            raise FrameError(f"{keyword} {_told(numbers)}", _told(found or ()), CHANGED)


def _told(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers) or "none"


def _read_slice(target: npt.NDArray[Any], slice_: CtSlice, file: FrameFile, scratch: Path) -> None:
    """Put one slice in Hounsfield units into its place, (rows, columns)."""
    stored = file.stored(slice_.frame, scratch, target)
    if target.dtype.kind == "f":
        wide = stored.astype(np.float64)
        wide *= slice_.slope
        wide += slice_.intercept
        with np.errstate(over="ignore"):
            target[...] = wide
        return
    # arithmetic modulo the width of the type: exact, for the result is known to fit
    if not np.may_share_memory(stored, target):
        np.copyto(target, stored, casting="unsafe")
    target *= np.int64(slice_.slope).astype(target.dtype)
    target += np.int64(slice_.intercept).astype(target.dtype)


@contextlib.contextmanager
def _naming(series: CtSeries, z: int) -> Iterator[None]:
    """Say which slice cannot be read, without its path and without what libraries quote of its tags."""
    try:
        yield
    except (FrameError, OSError) as error:
        instance = uid_digest(series.slices[z].sop_instance_uid)
        which = f"{series.label}: slice {z + 1} of {len(series.slices)} (instance {instance})"
        what = str(error) if isinstance(error, FrameError) else f"{_unreadable(error)}: {CHANGED}"
        raise InputError(f"{which}: {what}") from None
