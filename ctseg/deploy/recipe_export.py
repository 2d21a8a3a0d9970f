"""From several trained nnU-Nets that work together to one bundle: each proven by itself, and all of them as a whole."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ctseg.arrays import LabelMap
from ctseg.deploy.bundle import check_replaceable, read_bundle
from ctseg.deploy.export import ExportOptions, LeftOutError, export_model
from ctseg.deploy.network_predictor import NetworkPredictor, exact_predictor
from ctseg.deploy.parity import EXACT_SUMS
from ctseg.deploy.parity_cases import FirstStage, prepare_scans, preprocessed_cases, read_scans
from ctseg.deploy.phantom import phantom_volume
from ctseg.deploy.recipe_bundle import RecipeBundle, RecipeParity, read_recipe_bundle, write_recipe
from ctseg.deploy.reference import torch_network
from ctseg.deploy.runtimes import describe_runtime
from ctseg.deploy.trained_model import LoadedModel
from ctseg.deploy.whole import check_whole
from ctseg.errors import OutputError, ParityError
from ctseg.files.atomic import appearing
from ctseg.files.volume import Volume
from ctseg.model_spec import KeepLargest, ModelSpec
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.segment import CaseContext
from ctseg.predict.segmenter import WindowSegmenter
from ctseg.predict.whole_scan import require_usable_name
from ctseg.recipe import Recipe
from ctseg.stages import stage

_AS_USUAL = ExportOptions()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedStage:
    """A trained model, with the first stage where it is the second one of a cascade.

    Attributes:
        model: The trained model.
        first: The first stage.
    """

    model: LoadedModel
    first: LoadedModel | None = None


@dataclass(frozen=True)
class TrainedRecipe:
    """Trained models that work together.

    Attributes:
        members: One: by itself, or a cascade. Several: an ensemble, in the order in which they are averaged.
        postprocessing: Of the ensemble.
    """

    members: tuple[TrainedStage, ...]
    postprocessing: tuple[KeepLargest, ...] = ()

    @property
    def is_single(self) -> bool:
        """Whether one model does it all, and no recipe is needed."""
        return len(self.members) == 1 and self.members[0].first is None


def export_recipe(
    trained: TrainedRecipe,
    output: Path,
    options: ExportOptions = _AS_USUAL,
    *,
    scans: Sequence[Path] = (),
    report: Callable[[str], None] = _log.info,
) -> RecipeBundle:
    """Write the bundle of a cascade or an ensemble.

    Args:
        trained: The models.
        output: Folder of the bundle; a bundle that is there is replaced.
        options: How; the name is the recipe's.
        scans: Real scans to prove all with; without any, nnU-Net's preprocessed data proves the members, and the
            phantom the whole.
        report: Takes lines that say how it goes.

    Raises:
        LeftOutError: A mixed network does not give PyTorch's labels; the bundle is written without it.
        ParityError: An FP32 graph, or all of them together, do not; nothing is written.
        SpecError: The plans ask for something that ctseg does not reproduce.
        SetupError: ``output`` holds something else.
        OutputError: ``output`` cannot be written.
    """
    check_replaceable(output)
    name = options.name or trained.members[0].model.default_name
    require_usable_name(name)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with appearing(output) as part:
            job = _RecipeJob(part, name, options, scans, report)
            steps = [job.export(stage) for stage in trained.members]
            step = steps[0]
            if len(steps) > 1:
                post = [item.model_dump() for item in trained.postprocessing]
                step = {"kind": "ensemble", "members": steps, "postprocessing": post}
            write_recipe(part, *job.proven(step))
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error}") from error
    if job.left_out:
        raise LeftOutError(job.left_out, output, written="what passed")
    return read_recipe_bundle(output)


class _RecipeJob:
    """One export of a recipe.

    Attributes:
        left_out: Why mixed networks of members were left out.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        options: ExportOptions,
        scans: Sequence[Path],
        report: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._name = name
        self._options = options
        self._scans = scans
        self._report = report
        self._models: dict[str, LoadedModel] = {}
        self._specs: dict[str, ModelSpec] = {}
        self.left_out: list[ParityError] = []

    def export(self, stage: TrainedStage) -> dict[str, Any]:
        """Export a member, its first stage before it; return its step."""
        if stage.first is None:
            return {"kind": "model", "model": self._export_one(stage.model, None)}
        first = self._export_one(stage.first, None)
        return {"kind": "cascade", "previous": first, "model": self._export_one(stage.model, first)}

    def _export_one(self, model: LoadedModel, first: str | None) -> str:
        name = self._name_of(model)
        if name in self._specs:
            return name
        first_spec = None if first is None else self._specs[first]
        draft = model.spec(name=name, mirroring="none", max_batch_size=1, first_stage=first_spec)
        if self._scans:
            labels = None if first is None else self._labels_by(first)
            cases, source = prepare_scans(self._scans, draft, labels), "scans"
        else:
            cases, source = preprocessed_cases(model, draft), "nnU-Net's preprocessed training data"
        options = replace(self._options, name=name)
        try:
            bundle = export_model(
                model, self._folder / name, options, cases=cases, data_source=source, first_stage=first_spec,
                report=self._report,
            )  # fmt: skip
        except LeftOutError as error:
            self.left_out += error.why
            bundle = read_bundle(self._folder / name)
        self._models[name], self._specs[name] = model, bundle.spec
        return name

    def _name_of(self, model: LoadedModel) -> str:
        """Return a name that says which of the models it is: the recipe's, and the configuration's."""
        known = [name for name, other in self._models.items() if other is model]
        if known:
            return known[0]
        name, number = f"{self._name}_{model.configuration}", 1
        while name in self._models:
            number += 1
            name = f"{self._name}_{model.configuration}_{number}"
        return name

    def _labels_by(self, name: str) -> FirstStage:
        """Return what PyTorch gives for a first stage."""

        def labels(volume: Volume) -> LabelMap:
            segmenter = WindowSegmenter(self._torch(name))
            try:
                return segmenter.segment(volume, CaseContext()).labels
            finally:
                segmenter.close()

        return labels

    def _torch(self, name: str) -> PatchPredictor:
        spec = self._specs[name]
        return NetworkPredictor(torch_network(self._models[name], spec), spec)

    def proven(self, step: Mapping[str, Any]) -> tuple[Recipe, RecipeParity]:
        """Return the recipe, and what came of it as a whole.

        Raises:
            ParityError: It does not give PyTorch's labels.
        """
        members = [{"model": name, "digest": spec.digest} for name, spec in self._specs.items()]
        said = {name: presentation.model_dump() for name, presentation in self._options.codes.items()}
        recipe = Recipe.model_validate({"name": self._name, "members": members, "step": step, "presentation": said})
        recipe.check(self._specs)
        onnx = {name: exact_predictor(self._folder / name, spec) for name, spec in self._specs.items()}
        torch = {name: self._torch(name) for name in self._specs}
        what = f"ONNX FP32 in {describe_runtime('onnxruntime')} on the CPU {EXACT_SUMS}"
        source, volume = self._case()
        with stage("all members together, on a whole case"):
            check = check_whole(recipe, onnx, torch, volume, what=what, source=source)
        self._report(f"  {self._name} as a whole, {source}: {check}")
        if check.problems and not self._options.accept_unproven:
            raise ParityError(
                f"{self._name}: its members together do not give PyTorch's labels: {'; '.join(check.problems)}",
                settings=("cases", "accept_unproven"),
            )
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return recipe, RecipeParity(checks=(check,), created=created)

    def _case(self) -> tuple[str, Volume]:
        """Return what the whole is proven on, and its source."""
        spec = next(iter(self._specs.values()))
        if not self._scans:
            return "the phantom", phantom_volume(spec)
        _, volume = next(read_scans(self._scans, spec))
        return "a real scan", volume
