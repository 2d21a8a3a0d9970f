"""Real scans to prove a network with: given ones, or what nnU-Net preprocessed for the training."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctseg.deploy.parity_data import PreparedCase
from ctseg.deploy.trained_model import LoadedModel
from ctseg.errors import InputError, SetupError
from ctseg.model_spec import ModelSpec
from ctseg.nnunet.plans import resolve_configuration

MOST_CASES = 4
"""One whole case, and a patch of each of the others."""


def prepare_scans(paths: Sequence[Path], spec: ModelSpec) -> list[PreparedCase]:
    """Read and prepare scans as ``ctseg predict`` does.

    Args:
        paths: Scans, or folders of scans named as for ``ctseg predict``.
        spec: The network's contract.

    Raises:
        InputError: A scan cannot be used.
    """
    from ctseg.files.cases import find_cases
    from ctseg.files.volume import read_volume
    from ctseg.numerics.prepare import prepare

    cases = [case for path in paths for case in find_cases(path, channels=len(spec.channels))][:MOST_CASES]
    prepared = []
    for case in cases:
        if case.problem is not None:
            raise InputError(case.problem)
        volume = read_volume(case.channels, spec.reader)
        prepared.append(PreparedCase(case.name, prepare(volume.voxels, volume.spacing_mm, spec).voxels))
    return prepared


def preprocessed_cases(model: LoadedModel) -> list[PreparedCase]:
    """Return cases that nnU-Net preprocessed for the training; none where there are none.

    Read are ``*.b2nd`` and ``*.npz`` under ``nnUNet_preprocessed``, never the pickles beside them. The
    smallest comes first.
    """
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 (nnU-Net's name)
    if not root:
        return []
    identifier = str(resolve_configuration(model.plans, model.configuration).get("data_identifier", ""))
    folder = Path(root) / model.dataset_name / identifier
    files = [
        file
        for file in [*folder.glob("*.b2nd"), *folder.glob("*.npz")]
        if not file.stem.endswith(("_seg", "_seg_from_prev_stage"))
    ]
    files = sorted(files, key=lambda file: (file.stat().st_size, file.name))
    smallest = files[:1] + files[len(files) // 4 :: max(1, len(files) // 4)]
    return [_read_preprocessed(file) for file in dict.fromkeys(smallest[:MOST_CASES])]


def _read_preprocessed(file: Path) -> PreparedCase:
    try:
        if file.suffix == ".b2nd":
            import blosc2  # type: ignore[import-untyped]

            voxels = np.asarray(blosc2.open(str(file), mode="r")[:], dtype=np.float32)
        else:
            with np.load(file, allow_pickle=False) as archive:
                voxels = np.asarray(archive["data"], dtype=np.float32)
    except ImportError as error:
        raise SetupError(f"{file}: needs blosc2, which comes with nnU-Net") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{file}: preprocessed case cannot be read: {error}") from error
    return PreparedCase(file.stem, np.ascontiguousarray(voxels))
