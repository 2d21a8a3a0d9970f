"""NIfTI files that hold all channels of a case in a fourth dimension, as those of the Decathlon do."""

from pathlib import Path

import nibabel
import numpy as np

from ctseg.errors import InputError


def split_channels(file: Path, folder: Path, *, channels: int) -> tuple[Path, ...]:
    """Write each channel of a file into a file of its own; the voxels and where they lie stay.

    Args:
        file: NIfTI, of four dimensions; of three where there is one channel.
        folder: In which to write.
        channels: Expected.

    Returns:
        A file for each channel, in order; of three dimensions the file itself.

    Raises:
        InputError: It cannot be read, or has another number of channels.
    """
    try:
        image = nibabel.load(file)
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{file.name}: expected a NIfTI file: {error}") from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise InputError(f"{file.name}: expected a NIfTI file, found {type(image).__name__}: convert it")
    shape = image.shape
    found = 1 if len(shape) == 3 else shape[3] if len(shape) == 4 else None
    if found != channels:
        raise InputError(f"{file.name}: expected {channels} channels, found a file of {' x '.join(map(str, shape))}")
    if len(shape) == 3:
        return (file,)
    try:
        voxels = np.asanyarray(image.dataobj)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file.name}: cannot be read: {error}") from error
    written = []
    for channel in range(channels):
        header = image.header.copy()
        header.set_data_dtype(voxels.dtype)
        header.set_slope_inter(1, 0)
        target = folder / f"{file.name.removesuffix('.gz').removesuffix('.nii')}_{channel:04d}.nii"
        nibabel.save(nibabel.Nifti1Image(voxels[..., channel], None, header), target)
        written.append(target)
    return tuple(written)
