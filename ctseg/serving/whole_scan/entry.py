"""What an entry for whole scans runs: the network of its name, or all members of a recipe, beside it on the disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctseg.errors import SpecError
from ctseg.files.volume import VolumeHeader
from ctseg.model_spec import ModelSpec
from ctseg.predict.contract import ScanContract, contract_of
from ctseg.predict.estimate import MemoryEstimate, WindowLoad, estimate_memory, most_windows
from ctseg.predict.estimate_recipe import estimate_recipe
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.recipe_agreement import models_that_vote
from ctseg.predict.recipe_run import RecipeRun
from ctseg.predict.recipe_segmenter import contract_of_recipe
from ctseg.predict.segment import CaseContext, Scan, Segmentation, WindowOptions, segment
from ctseg.predict.whole_scan import SCAN_SUFFIX
from ctseg.recipe import Recipe
from ctseg.serving.entries import member_versions, read_config, read_entry, read_recipe
from ctseg.serving.whole_scan.in_process import InProcessPredictor
from ctseg.serving.whole_scan.shared_memory import SharedMemoryUse
from ctseg.triton.configuration import scan_parameter


@dataclass(frozen=True)
class ScanEntry:
    """What whole scans are segmented by.

    Attributes:
        version: Of the model or recipe.
        contract: What it takes and gives.
        predictors: Run the networks, by name.
        recipe: What they do together; None for a model.
    """

    version: int
    contract: ScanContract
    predictors: Mapping[str, PatchPredictor]
    recipe: Recipe | None = None

    def estimate(self, header: VolumeHeader, loads: Mapping[str, WindowLoad]) -> MemoryEstimate:
        """Estimate the memory that a scan takes here.

        Triton's stub makes a NumPy copy of each answer that it gets, beside the one in shared memory.

        Raises:
            InputError: It would have no voxel at a network's spacing.
        """
        if self.recipe is not None:
            estimate = estimate_recipe(header, self.recipe, self._specs, loads)
        else:
            (name,) = self.predictors
            estimate = estimate_memory(header, self._specs[name], loads[name])
        second_copies = max(
            loads[name].waiting * (spec.logits_bytes + (spec.votes_bytes if loads[name].votes else 0))
            for name, spec in self._specs.items()
        )
        return replace(estimate, peak_bytes=estimate.peak_bytes + second_copies)

    @property
    def voting(self) -> frozenset[str]:
        """Names of the networks whose folds' agreement is told, if they have votes."""
        return frozenset(self.predictors) if self.recipe is None else models_that_vote(self.recipe.step)

    def most_windows(self, header: VolumeHeader, options: WindowOptions) -> Mapping[str, int]:
        """Return how many windows a scan has for each network at most; what lies outside the crop counts.

        Raises:
            InputError: It would have no voxel at a network's spacing.
        """
        return {name: most_windows(header, spec, options.tile_step_size) for name, spec in self._specs.items()}

    def segment(
        self, scan: Scan, queues: Mapping[str, InferenceQueue], options: WindowOptions, context: CaseContext
    ) -> Segmentation:
        """Segment a scan; see :meth:`ctseg.predict.segmenter.CaseSegmenter.segment`."""
        if self.recipe is not None:
            return RecipeRun(queues, options, context).segment(self.recipe, scan)
        (queue,) = queues.values()
        return segment(scan, queue, options, context)

    @property
    def _specs(self) -> Mapping[str, ModelSpec]:
        return {name: predictor.spec for name, predictor in self.predictors.items()}


def read_scan_entry(
    backend: Any, folder: Path, version: int, memory: SharedMemoryUse, is_alone: Callable[[], bool]
) -> ScanEntry:
    """Read what an entry runs, and check that it is what the entry was written for.

    Args:
        backend: The module ``triton_python_backend_utils``.
        folder: Of the entry, in the model repository as Triton sees it.
        version: Of the entry.
        memory: What calls may take of the shared memory.
        is_alone: See :class:`InProcessPredictor`.

    Raises:
        SpecError: What it runs is not there, or is another model.
    """
    repository = folder.parent
    key = scan_parameter(version)
    parameters = read_config(folder).parameters
    digest = parameters[key].string_value if key in parameters else ""

    def predictor(name: str, spec: ModelSpec, number: int) -> PatchPredictor:
        config = read_config(repository / name)
        return InProcessPredictor(
            backend, spec, number, memory=memory, is_alone=is_alone,
            instances=max(1, sum(group.count or 1 for group in config.instance_group)),
            network_backend=config.backend,
        )  # fmt: skip

    found = read_recipe(folder, version)
    if found is not None:
        recipe, _ = found
        members = member_versions(repository, recipe)
        contract = contract_of_recipe(recipe, {name: item.spec for name, item in members.items()})
        predictors = {name: predictor(name, item.spec, item.version) for name, item in members.items()}
        entry = ScanEntry(version, contract, predictors, recipe)
    else:
        name = folder.name.removesuffix(SCAN_SUFFIX)
        spec = _spec_of(repository / name, version)
        entry = ScanEntry(version, contract_of(spec), {name: predictor(name, spec, version)})
    if entry.contract.digest != digest:
        raise SpecError(
            f"{folder.name} version {version} was written for the spec {digest[:12] or 'none'}, and "
            f"{entry.contract.name} beside it has {entry.contract.digest[:12]}: build the model again"
        )
    return entry


def _spec_of(folder: Path, version: int) -> ModelSpec:
    for item in read_entry(folder).versions:
        if item.version == version:
            return item.spec
    raise SpecError(f"{folder.name}: version {version} is not beside its entry for whole scans: build the model again")
