"""Trained models as nnU-Net leaves them: a folder ``trainer__plans__configuration``, or the zip of one.

Only plans, data set, post-processing and checkpoints are looked at, and of a zip nothing else is unpacked.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import CheckpointError, CtsegError
from ctseg.files.owned_folder import owned_folder
from ctseg.model_spec import KeepLargest
from ctseg.nnunet.folds import Fold
from ctseg.nnunet.postprocessing import read_postprocessing
from ctseg.nnunet.zipped_models import MAX_JSON_BYTES, unpack

_DEPTHS = tuple("/".join("*" * depth) for depth in range(1, 6))
"""Folders above that of a trained model: the data set's, and what a zip was made of."""


@dataclass(frozen=True)
class Choice:
    """Which of several trained models is meant; None leaves a part open.

    Attributes:
        trainer: Name of the trainer class.
        plans: Name of the plans.
        configuration: Name of the configuration.
    """

    trainer: str | None = None
    plans: str | None = None
    configuration: str | None = None

    def fits(self, folder: Path) -> bool:
        """Whether a folder of a trained model has the names that were asked for."""
        parts = folder.name.split("__")
        wanted = (self.trainer, self.plans, self.configuration)
        return len(parts) != 3 or all(want in (None, part) for want, part in zip(wanted, parts, strict=True))


ANY_MODEL = Choice()
"""Leaves all parts open."""


@contextlib.contextmanager
def opened_results(path: Path, choice: Choice = ANY_MODEL, *, told_as: Path | None = None) -> Iterator[Path]:
    """Yield the folder of one trained model.

    Args:
        path: The folder ``trainer__plans__configuration``, a folder above it, or the zip that
            ``nnUNetv2_export_model_to_zip`` writes; what is unpacked goes away afterwards.
        choice: Which model, where there are several.
        told_as: What errors name in place of ``path``, which is an unpacked zip.

    Raises:
        CheckpointError: There is no such model, there are several, or the zip is broken or tries to leave its folder.
    """
    with unpacked(path) as folder:
        yield _model_folder(folder, told_as or path, choice)


@contextlib.contextmanager
def unpacked(path: Path, *, documents_only: bool = False) -> Iterator[Path]:
    """Yield a folder as it is, or what a zip of trained models holds; that goes away afterwards.

    Errors of the block that name the folder name the zip instead.

    Args:
        path: The folder, or the zip.
        documents_only: Unpack no checkpoint; the folders that have one are there.

    Raises:
        CheckpointError: There is neither, or see :func:`ctseg.nnunet.zipped_models.unpack`.
        OutputError: There is no room to unpack the zip.
    """
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        address = "; an address: download it first" if path.parts[:1] in (("https:",), ("http:",)) else ""
        raise CheckpointError(f"{path}: no such folder or zip file{address}")
    if path.suffix == ".pth":
        raise CheckpointError(
            f"{path}: a checkpoint alone does not say what network it is for: give the results folder that it lies in, "
            "or nnU-Net's zip"
        )
    with owned_folder("ctseg-model-") as temporary:
        unpack(path, temporary, documents_only=documents_only)
        try:
            yield temporary
        except CtsegError as error:
            error.args = (str(error).replace(str(temporary), str(path)),)
            raise


def ensemble_postprocessing(folders: Sequence[Path]) -> tuple[KeepLargest, ...]:
    """Return the steps that nnU-Net determined for the ensemble of two models; none where it looked for none.

    Args:
        folders: Of the models, side by side.

    Raises:
        CheckpointError: They cannot be read.
    """
    beside = folders[0].parent / "ensembles"
    for one, other in (folders[:2], folders[1::-1]) if len(folders) == 2 else ():
        found = sorted(beside.glob(f"ensemble___{one.name}___{other.name}___*/postprocessing.json"))
        if found:
            return read_postprocessing(found[-1].parent)
    return ()


def read_json(path: Path) -> dict[str, Any]:
    """Read ``plans.json`` or ``dataset.json``.

    Raises:
        CheckpointError: It is missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB, which no nnU-Net file of this name is"
            )
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing; a trained model has it beside its folds") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def trained_folds(folder: Path, folds: Sequence[Fold] | None, checkpoint: str) -> tuple[str, ...]:
    """Return folds that have a checkpoint, as in the names of their folders.

    Args:
        folder: Of one trained model.
        folds: Which; None takes every numbered fold that has the checkpoint, else ``fold_all``.
        checkpoint: Name of the checkpoint file.

    Raises:
        CheckpointError: One that was asked for has none, or none has one.
    """
    having = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{checkpoint}"))
    if folds is None:
        names = [name for name in having if name != "all"] or having
        if not names:
            others = sorted({file.name for file in folder.glob("fold_*/checkpoint_*.pth")})
            raise CheckpointError(
                f"{folder}: no fold has {checkpoint}; found {', '.join(others) or 'no checkpoint'}: "
                "finish the training, or choose another checkpoint",
                settings=("checkpoint",),
            )
        return tuple(names)
    if missing := [str(fold) for fold in folds if str(fold) not in having]:
        raise CheckpointError(
            f"{folder}: {checkpoint} is missing for folds {', '.join(missing)}; "
            f"it is there for {', '.join(having) or 'none'}"
        )
    return tuple(str(fold) for fold in folds)


def trained_models(root: Path) -> list[Path]:
    """Return the folders of trained models below a folder, or itself where it is one."""
    if (root / "plans.json").is_file():
        return [root]
    found = sorted({file.parent for depth in _DEPTHS for file in root.glob(f"{depth}/plans.json")})
    return [folder for folder in found if any(folder.glob("fold_*"))]


def require_one_dataset(folders: Sequence[Path], root: Path, path: Path) -> None:
    """Refuse to choose among trained models of several data sets.

    Args:
        folders: Of trained models.
        root: What they lie in.
        path: What the message calls that.

    Raises:
        CheckpointError: They lie in several folders.
    """
    datasets = sorted({str(folder.parent.relative_to(root)) for folder in folders})
    if len(datasets) > 1:
        raise CheckpointError(
            f"{path}: trained models of several data sets: {', '.join(datasets)}: give the folder of one of them"
            f"{'' if path.is_dir() else ', for which the zip has to be unpacked'}"
        )


def _model_folder(root: Path, path: Path, choice: Choice) -> Path:
    """Return the one folder with ``plans.json`` at or below ``root`` that fits."""
    if (root / "plans.json").is_file():
        return root
    found = trained_models(root)
    if not found:
        without = sorted({file.parent.name for depth in _DEPTHS for file in root.glob(f"{depth}/plans.json")})
        raise CheckpointError(
            f"{path}: no trained model that fits: expected a folder trainer__plans__configuration with plans.json, "
            "dataset.json and fold_*/checkpoint_final.pth, found "
            f"{'plans.json without a fold in ' + ', '.join(without) if without else 'no plans.json'}"
        )
    fitting = [folder for folder in found if choice.fits(folder)]
    require_one_dataset(fitting, root, path)
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(folder.name for folder in found)
    if not fitting:
        raise CheckpointError(f"{path}: no trained model that fits (trainer__plans__configuration); found: {names}")
    raise CheckpointError(
        f"{path}: {len(fitting)} trained models fit, choose a configuration, a trainer or plans; found: {names}",
        settings=("configuration", "trainer", "plans"),
    )
