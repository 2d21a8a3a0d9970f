"""From the headers of a series' files to the series: one volume, or why it is none."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ctseg.files.dicom.frames import CtFile, Frame
from ctseg.files.dicom.kinds import COMPRESSED, UNCOMPRESSED, WHOLE_BITS
from ctseg.files.dicom.series import CtSeries, CtSlice
from ctseg.files.dicom.stack import Stack, StackError, stack_of

_UNITS = ("HU_MOD", "OD", "MGML", "Z_EFF", "ED", "EDW", "PCT", "US")
"""Terms that the standard defines for RescaleType, beside HU; any other text is not told."""
_GREY = ("MONOCHROME2", "MONOCHROME1", "")
"""Terms of PhotometricInterpretation: how numbers are shown changes none of them."""
_SHOWN = 3
_STRAIGHT_DEGREES = 1.0
"""From the axis of the scanner, up to which slices and gantries count as not tilted."""


def series_of(files: Sequence[CtFile], problem: str | None = None) -> CtSeries:
    """Put the slices of one series together.

    Args:
        files: At least one; each SOP instance once, in an order that does not depend on how they were found.
        problem: Why the series is refused, as far as that is known before.
    """
    slices = [(file, frame) for file in files for frame in file.frames]
    stack = None
    if problem is None:
        try:
            _check_files(files)
            _check_voxels(files)
            stack = stack_of([frame for _, frame in slices], files[0].rows)
        except StackError as refused:
            problem = str(refused)
    if stack is not None:
        slices = [slices[index] for index in stack.order]
    return _described(files, slices, stack, problem)


def _check_files(files: Sequence[CtFile]) -> None:
    """Refuse files that are damaged, or not of one series.

    Raises:
        StackError: They are so.
    """
    if damaged := [file.damage for file in files if file.damage]:
        raise StackError(f"{len(damaged)} of {len(files)} files: {damaged[0]}")
    if nameless := sum(not file.sop_instance_uid for file in files):
        raise StackError(f"SOPInstanceUID is missing in {nameless} of {len(files)} files: export the series again")
    for values, what in (
        ({file.patient for file in files if file.patient}, "patients (PatientID)"),
        ({file.frame_of_reference_uid for file in files}, "frames of reference (FrameOfReferenceUID)"),
        ({file.sop_class_uid for file in files}, "kinds (SOPClassUID)"),
    ):
        if len(values) > 1:
            raise StackError(f"it holds slices of {len(values)} {what}: give each a series of its own")
    if unread := sum(file.transfer_syntax_uid not in (*UNCOMPRESSED, *COMPRESSED) for file in files):
        raise StackError(
            f"an encoding that cannot be read (TransferSyntaxUID) in {unread} of {len(files)} files: export the series "
            "uncompressed"
        )


def _check_voxels(files: Sequence[CtFile]) -> None:
    """Refuse voxels that are not one number each, or of several kinds.

    Raises:
        StackError: They are so.
    """
    if coloured := [file for file in files if file.samples != 1 or file.photometric not in _GREY]:
        raise StackError(
            f"colour in {len(coloured)} of {len(files)} files (SamplesPerPixel {coloured[0].samples}, where 1 in "
            "shades of grey is expected): give the scan itself, no picture of it"
        )
    sizes = Counter((file.columns, file.rows) for file in files for _ in file.frames)
    if len(sizes) > 1:
        found = ", ".join(f"{count} of {columns} x {rows}" for (columns, rows), count in sizes.most_common(_SHOWN))
        raise StackError(f"its slices have {len(sizes)} sizes ({found} voxels): give each size a series of its own")
    if any(0 in size for size in sizes):
        raise StackError("its slices do not say their size (Rows, Columns): export the series again")
    kinds = {(file.bits[0], file.bits[3]) for file in files}
    for bits, sign in kinds:
        if bits not in WHOLE_BITS or sign not in (0, 1):
            raise StackError(
                "expected numbers of 8, 16 or 32 bits, with a sign or without (BitsAllocated, PixelRepresentation), "
                f"found {bits} bits: export the series again"
            )
    if len(kinds) > 1:
        raise StackError(
            f"its slices store numbers of {len(kinds)} types (BitsAllocated, PixelRepresentation): export it again"
        )
    for allocated, stored, high, _ in {file.bits for file in files}:
        if not (stored and allocated and 1 < stored <= allocated and high == stored - 1):
            raise StackError(
                f"expected the bits of a number in the lowest of {allocated}, found {stored} of them up to bit {high} "
                "(BitsStored, HighBit): export the series again"
            )


def _described(
    files: Sequence[CtFile], slices: Sequence[tuple[CtFile, Frame]], stack: Stack | None, problem: str | None
) -> CtSeries:
    """Return what the headers say; where it is to be equal in all files, the first one stands for them."""
    first, frame = slices[0]
    nan = math.nan
    if stack is not None:
        (x, y, z), (u, v, w) = stack.along_x.tolist(), stack.along_y.tolist()
        orientation, spacing, step = (x, y, z, u, v, w), stack.pixel_spacing_mm, tuple(stack.step_mm.tolist())
    else:
        orientation = frame.orientation_lps or (nan, nan, nan, nan, nan, nan)
        spacing = frame.pixel_spacing_mm or (nan, nan)
        step = (nan, nan, nan)
    return CtSeries(
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        sop_class_uid=first.sop_class_uid,
        study_id=first.study_id,
        series_number=first.series_number,
        description=first.description,
        kernel=first.kernel,
        frame_of_reference_uid=first.frame_of_reference_uid,
        slices=tuple(_slice(file, frame) for file, frame in slices),
        rows=first.rows,
        columns=first.columns,
        orientation_lps=orientation,
        pixel_spacing_mm=spacing,
        step_lps_mm=step,
        stored_dtype=f"{'' if first.bits[3] else 'u'}int{first.bits[0] if first.bits[0] in WHOLE_BITS else 16}",
        tags=first.tags,
        stored_range=None if problem else _stored_range(files),
        problem=problem,
        warnings=() if stack is None else (*stack.warnings, *_told_of_tilt(files, stack), *_told(files)),
    )


def _slice(file: CtFile, frame: Frame) -> CtSlice:
    nowhere = (math.nan, math.nan, math.nan)
    return CtSlice(
        file.path,
        frame.number,
        file.sop_instance_uid,
        frame.position_lps_mm or nowhere,
        math.nan if frame.slope is None else frame.slope,
        math.nan if frame.intercept is None else frame.intercept,
        file.transfer_syntax_uid,
    )


def _stored_range(files: Sequence[CtFile]) -> tuple[int, int]:
    """Return the lowest and the highest number that any of the files may store."""
    bits = max(file.bits[1] or 0 for file in files)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if files[0].bits[3] else (0, 2**bits - 1)


def _told_of_tilt(files: Sequence[CtFile], stack: Stack) -> tuple[str, ...]:
    """Return what is told of slices that are said to be tilted, and lie straight."""
    tilt = max((file.tilt_degrees or 0.0 for file in files), key=abs)
    from_axis = float(np.degrees(np.arccos(min(1.0, abs(np.cross(stack.along_x, stack.along_y)[2])))))
    if abs(tilt) <= _STRAIGHT_DEGREES or from_axis > _STRAIGHT_DEGREES:
        return ()
    return (f"its gantry is said to be tilted by {tilt:.3g} degrees (GantryDetectorTilt), and its slices lie straight",)


def _told(files: Sequence[CtFile]) -> tuple[str, ...]:
    """Return what people are to know of the voxels."""
    told = []
    if lossy := sum(file.lossy for file in files):
        told.append(f"compressed with loss ({lossy} of {len(files)} files): its numbers are not quite the scanner's")
    units = {frame.unit for file in files for frame in file.frames} - {"HU", ""}
    if units:
        named = sorted(unit for unit in units if unit in _UNITS)
        unit = ", ".join(named) or "another unit"
        told.append(f"its numbers are said to be {unit}, not HU (RescaleType): taken as they are")
    return tuple(told)
