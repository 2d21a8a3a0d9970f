"""CT segmentation from data to production: nnU-Net trained, exported, served by Triton, and used.

The names below are the Python interface of the client; they are loaded when first used, so that
``import ctseg`` costs nothing::

    with ctseg.connect(["gpu1:8001"], "liver") as predictor:
        scan = ctseg.read_volume([Path("scan.nii.gz")], predictor.spec.reader)
        labels = ctseg.segment_volume(scan, predictor)  # (z, y, x), on the scan's own grid
        ctseg.write_label_map(Path("labels.nii.gz"), labels, scan)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctseg.files.cases import Case, find_cases
    from ctseg.files.codes import read_codes
    from ctseg.files.dicom.choosing import SeriesRules
    from ctseg.files.geometry import Geometry
    from ctseg.files.volume import Volume, read_volume, volume_from_array, write_label_map
    from ctseg.model_spec import ModelSpec
    from ctseg.predict.folder import segment_cases
    from ctseg.predict.options import BatchOptions
    from ctseg.predict.parts import Part
    from ctseg.predict.review import review_folder
    from ctseg.predict.segmenter import segment_volume
    from ctseg.runs.dask import DaskScheduler, segment_folder_on_dask
    from ctseg.runs.folder import segment_folder
    from ctseg.runs.model import ServedModel
    from ctseg.runs.where import opened_segmenter
    from ctseg.serving.process import ServerOptions
    from ctseg.serving.server import embedded_server
    from ctseg.triton.options import ClientOptions
    from ctseg.triton.predictor import connect

__version__ = "0.1.0"

__all__ = [
    "BatchOptions",
    "Case",
    "ClientOptions",
    "DaskScheduler",
    "Geometry",
    "ModelSpec",
    "Part",
    "SeriesRules",
    "ServedModel",
    "ServerOptions",
    "Volume",
    "connect",
    "embedded_server",
    "find_cases",
    "opened_segmenter",
    "read_codes",
    "read_volume",
    "review_folder",
    "segment_cases",
    "segment_folder",
    "segment_folder_on_dask",
    "segment_volume",
    "volume_from_array",
    "write_label_map",
]

_HOMES = {
    "BatchOptions": "ctseg.predict.options",
    "Case": "ctseg.files.cases",
    "ClientOptions": "ctseg.triton.options",
    "DaskScheduler": "ctseg.runs.dask",
    "Geometry": "ctseg.files.geometry",
    "ModelSpec": "ctseg.model_spec",
    "Part": "ctseg.predict.parts",
    "SeriesRules": "ctseg.files.dicom.choosing",
    "ServedModel": "ctseg.runs.model",
    "ServerOptions": "ctseg.serving.process",
    "Volume": "ctseg.files.volume",
    "connect": "ctseg.triton.predictor",
    "embedded_server": "ctseg.serving.server",
    "find_cases": "ctseg.files.cases",
    "opened_segmenter": "ctseg.runs.where",
    "read_codes": "ctseg.files.codes",
    "read_volume": "ctseg.files.volume",
    "review_folder": "ctseg.predict.review",
    "segment_cases": "ctseg.predict.folder",
    "segment_folder": "ctseg.runs.folder",
    "segment_folder_on_dask": "ctseg.runs.dask",
    "segment_volume": "ctseg.predict.segmenter",
    "volume_from_array": "ctseg.files.volume",
    "write_label_map": "ctseg.files.volume",
}


def __getattr__(name: str) -> Any:
    """Load a name of the interface from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ctseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
