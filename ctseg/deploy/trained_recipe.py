"""Trained models that work together, found beside each other as nnU-Net leaves them."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ctseg.deploy.recipe_export import TrainedRecipe, TrainedStage
from ctseg.deploy.trained_model import LoadedModel, load_trained_model
from ctseg.errors import CheckpointError
from ctseg.model_spec import KeepLargest
from ctseg.nnunet.folds import Fold
from ctseg.nnunet.results_folder import Choice, ensemble_postprocessing, opened_results, unpacked


def load_trained_recipe(
    members: Sequence[tuple[Path, Choice]],
    *,
    folds: Sequence[Fold] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    postprocessing: tuple[KeepLargest, ...] = (),
    trust: bool = False,
) -> TrainedRecipe:
    """Read trained models, and the first stage of each that is the second one of a cascade.

    A first stage has the folder of the same trainer and plans beside it.

    Args:
        members: Where each is, and which one there; see :func:`ctseg.deploy.trained_model.load_trained_model`.
        folds: See there.
        checkpoint: See there.
        postprocessing: Of the model, or of the ensemble of several; what nnU-Net determined for an ensemble is found
            beside its members.
        trust: See there.

    Raises:
        CheckpointError: See there; or a post-processing of nnU-Net's cannot be read, or a first stage is not where it
            should be.
    """
    own = postprocessing if len(members) == 1 else ()
    loaded: dict[Path, LoadedModel] = {}
    stages = []
    with ExitStack() as stack:
        roots = {path: stack.enter_context(unpacked(path)) for path in {path for path, _ in members}}
        folders = [stack.enter_context(opened_results(roots[path], choice, told_as=path)) for path, choice in members]
        if len(members) > 1 and not postprocessing:
            postprocessing = ensemble_postprocessing(folders)
        for folder in folders:
            model = load_trained_model(
                folder, folds=folds, checkpoint=checkpoint, postprocessing=own, trust=trust
            )  # fmt: skip
            first = None
            if (configuration := model.previous_stage) is not None:
                beside = _first_stage(folder, configuration)
                first = loaded.get(beside)
                if first is None:
                    first = load_trained_model(beside, folds=folds, checkpoint=checkpoint, trust=trust)
                loaded[beside] = first
            stages.append(TrainedStage(model, first))
    return TrainedRecipe(tuple(stages), () if len(members) == 1 else postprocessing)


def _first_stage(folder: Path, configuration: str) -> Path:
    trainer, plans, own = folder.name.split("__") if folder.name.count("__") == 2 else ("", "", "")
    beside = folder.with_name(f"{trainer}__{plans}__{configuration}")
    if not own or not (beside / "plans.json").is_file():
        raise CheckpointError(
            f"{folder}: this is the second stage of a cascade; its first stage is not beside it: expected "
            f"{beside.name if own else f'trainer__plans__{configuration}'} with its folds"
        )
    return beside
