"""nnU-Net's post-processing as plain data; its pickle is read without running anything in it."""

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import CheckpointError
from ctseg.model_spec import KeepLargest

_MODULE = "nnunetv2.postprocessing.remove_connected_components"
_FUNCTION = "remove_all_but_largest_component_from_segmentation"


def read_postprocessing(folder: Path) -> tuple[KeepLargest, ...]:
    """Read the steps that nnU-Net's ``determine_postprocessing`` left in a folder.

    ``postprocessing.json`` is preferred. ``postprocessing.pkl`` holds the same; of what a pickle may
    name, only the one function that nnU-Net puts there is accepted, and it becomes its name.

    Args:
        folder: A folder of merged validation results, or one with either file.

    Returns:
        The steps in order; empty where nnU-Net found that none helps.

    Raises:
        CheckpointError: Neither file is there, one is damaged, or it names another function.
    """
    for name, read in (("postprocessing.json", _from_json), ("postprocessing.pkl", _from_pickle)):
        file = folder / name
        if file.is_file():
            try:
                functions, kwargs = read(file)
            except (OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
                raise CheckpointError(f"{file}: {type(error).__name__}: {error}") from error
            return _steps(file, functions, kwargs)
    raise CheckpointError(f"{folder}: neither postprocessing.json nor postprocessing.pkl")


def _from_json(file: Path) -> tuple[Sequence[str], Sequence[Mapping[str, Any]]]:
    content = json.loads(file.read_text())
    return content["postprocessing_fns"], content["postprocessing_kwargs"]


class _OnlyKeepLargest(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == (_MODULE, _FUNCTION):
            return _FUNCTION
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which nnU-Net's post-processing does not")


def _from_pickle(file: Path) -> tuple[Sequence[str], Sequence[Mapping[str, Any]]]:
    functions, kwargs = _OnlyKeepLargest(io.BytesIO(file.read_bytes())).load()
    return functions, kwargs


def _steps(file: Path, functions: Sequence[str], kwargs: Sequence[Mapping[str, Any]]) -> tuple[KeepLargest, ...]:
    steps = []
    for function, given in zip(functions, kwargs, strict=True):
        if function != _FUNCTION or set(given) - {"labels_or_regions", "background_label"}:
            raise CheckpointError(f"{file}: step {function}({', '.join(given)}) is not one that ctseg knows")
        if given.get("background_label", 0) != 0:
            raise CheckpointError(f"{file}: a step writes {given['background_label']} instead of the background 0")
        steps.append(KeepLargest(labels=tuple(sorted(_flat(given["labels_or_regions"])))))
    return tuple(steps)


def _flat(labels_or_regions: Any) -> set[int]:
    # nnU-Net takes a label, a region, or a list of either; the mask is their union
    if isinstance(labels_or_regions, (list, tuple)):
        return {value for part in labels_or_regions for value in _flat(part)}
    return {int(labels_or_regions)}
