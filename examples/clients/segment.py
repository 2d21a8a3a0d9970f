"""Segments a scan through Triton with tritonclient alone, without ctseg: docs/api.md has each step in words.

    python segment.py HOST:PORT ENTRY LABELS.nii.gz SCAN.nii.gz [FURTHER_CHANNEL.nii.gz ...]

ENTRY is liver_scan for the model liver, and the name of a recipe itself. Needs tritonclient[grpc] and SimpleITK.
"""

import json
import sys

import numpy as np
import SimpleITK
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput


def reader_of(client, model):
    """Return the name of the reader that a model was trained with; of a recipe, that of its first member."""
    parameters = client.get_model_config(model).config.parameters
    key = next(key for key in parameters if key.startswith(("ctseg_spec.", "ctseg_recipe.")))
    found = json.loads(parameters[key].string_value)
    return found["reader"] if "reader" in found else reader_of(client, found["members"][0]["model"])


def tensor(name, kind, array):
    """Return an input of Triton's."""
    given = InferInput(name, array.shape, kind)
    given.set_data_from_numpy(array)
    return given


def segment(url, entry, paths):
    """Return the label map as an image on the grid of the scan, and the report."""
    client = InferenceServerClient(url)
    images = [SimpleITK.ReadImage(path) for path in paths]
    file_orientation = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images[0].GetDirection())
    turns = reader_of(client, entry.removesuffix("_scan")).endswith("WithReorient")
    if turns:
        images = [SimpleITK.DICOMOrient(image, "RAS") for image in images]
    voxels = np.stack([SimpleITK.GetArrayFromImage(image) for image in images])  # (channels, z, y, x)
    if voxels.dtype.kind in "iu" and voxels.min() >= -32768 and voxels.max() <= 32767:
        scan = tensor("voxels_int16", "INT16", voxels.astype(np.int16))
    else:
        scan = tensor("voxels_fp32", "FP32", voxels.astype(np.float32))
    spacing = tensor("spacing_mm", "FP64", np.array(images[0].GetSpacing()[::-1]))  # (z, y, x)
    outputs = [InferRequestedOutput("labels"), InferRequestedOutput("report")]
    answer = client.infer(entry, [scan, spacing], outputs=outputs)  # parameters={"tile_step_size": "0.75"}
    labels = SimpleITK.GetImageFromArray(answer.as_numpy("labels"))
    labels.CopyInformation(images[0])
    if turns:
        labels = SimpleITK.DICOMOrient(labels, file_orientation)
    return labels, json.loads(answer.as_numpy("report").tobytes())


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    url, entry, target, *paths = sys.argv[1:]
    labels, report = segment(url, entry, paths)
    SimpleITK.WriteImage(labels, target)
    print(json.dumps(report))
