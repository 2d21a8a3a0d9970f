"""CaseSegmenter: a scan in, labels out; by several models that work together as a recipe says."""

from collections.abc import Mapping

from ctseg.errors import SpecError
from ctseg.files.volume import Volume, VolumeHeader
from ctseg.model_spec import ModelSpec
from ctseg.predict.contract import ScanContract, ct_intensities_of
from ctseg.predict.estimate import MemoryEstimate
from ctseg.predict.estimate_recipe import estimate_recipe
from ctseg.predict.inference_queue import InferenceQueue, InferenceThreads
from ctseg.predict.predictor import Identity, PatchPredictor
from ctseg.predict.recipe_agreement import models_that_vote, why_none
from ctseg.predict.recipe_run import RecipeRun
from ctseg.predict.segment import CaseContext, Scan, Segmentation, WindowOptions
from ctseg.predict.segmenter import window_load
from ctseg.recipe import CropStep, Recipe, UnionStep


class RecipeSegmenter:
    """Cuts windows here and runs them on the predictors of a recipe's members; all cases share one queue.

    Args:
        recipe: What they do together.
        predictors: Run the networks, by the names of the members; mirroring is added here.
        options: How windows are laid and run.
        version: Of the recipe, as the server numbers it.

    Raises:
        SpecError: A member has another spec than the recipe was written for, or cannot do what it asks.
    """

    def __init__(
        self,
        recipe: Recipe,
        predictors: Mapping[str, PatchPredictor],
        options: WindowOptions | None = None,
        *,
        version: int = 1,
    ) -> None:
        self._recipe = recipe
        self._options = options or WindowOptions()
        specs = {name: predictor.spec for name, predictor in predictors.items()}
        recipe.check(specs)
        self._contract = contract_of_recipe(recipe, specs)
        self._version = version
        self._threads = InferenceThreads()
        voting = models_that_vote(recipe.step) if self._options.agreement else ()
        self._queues = {
            name: InferenceQueue(
                predictor, mirroring=self._options.mirroring, threads=self._threads, votes=name in voting
            )
            for name, predictor in predictors.items()
        }

    @property
    def identity(self) -> Identity:
        """The recipe's; its servers are those of all members."""
        members = [queue.predictor.identity for queue in self._queues.values()]
        return Identity(
            model=self._recipe.name,
            version=self._version,
            digest=self._recipe.digest,
            servers=tuple(dict.fromkeys(server for member in members for server in member.servers)),
            transport=", ".join(dict.fromkeys(member.transport for member in members)),
            members=tuple(members),
            runners=tuple(runner for member in members for runner in member.runners),
        )

    @property
    def contract(self) -> ScanContract:
        """That of the recipe."""
        return self._contract

    @property
    def cases_in_flight(self) -> None:
        """None."""
        return None

    def estimate(self, header: VolumeHeader, *, saves_probabilities: bool) -> MemoryEstimate:
        """See :meth:`CaseSegmenter.estimate`."""
        loads = {name: window_load(queue, self._options) for name, queue in self._queues.items()}
        specs = {name: queue.predictor.spec for name, queue in self._queues.items()}
        return estimate_recipe(header, self._recipe, specs, loads, saves_probabilities=saves_probabilities)

    def segment(self, volume: Volume, context: CaseContext | None = None) -> Segmentation:
        """See :meth:`CaseSegmenter.segment`."""
        return RecipeRun(self._queues, self._options, context or CaseContext()).segment(self._recipe, Scan.of(volume))

    def abort(self) -> None:
        """See :meth:`CaseSegmenter.abort`."""
        self._threads.abort()

    def close(self) -> None:
        """See :meth:`CaseSegmenter.close`."""
        self._threads.close()


def contract_of_recipe(recipe: Recipe, specs: Mapping[str, ModelSpec]) -> ScanContract:
    """Return what a recipe takes and gives.

    Args:
        recipe: The recipe.
        specs: Of its members, by name; checked.

    Raises:
        SpecError: Its members take scans of different kinds.
    """
    first = specs[recipe.members[0].model]
    states = {spec.parity.state for spec in specs.values()}
    names = {tuple(channel.name for channel in spec.channels) for spec in specs.values()}
    if len(names) > 1:
        told = " and ".join(", ".join(each) for each in sorted(names))
        raise SpecError(f"{recipe.name}: expected members that take the same channels, found {told}")
    return ScanContract(
        name=recipe.name,
        digest=recipe.digest,
        channels=tuple(channel.name for channel in first.channels),
        reader=first.reader,
        file_ending=first.file_ending,
        labels=recipe.labels(specs),
        parity=next(state for state in ("unproven", "untested", "proven") if state in states),
        mirrors_in_graph=any(spec.mirroring == "graph" for spec in specs.values()),
        has_probabilities=not isinstance(recipe.step, CropStep | UnionStep),
        no_agreement=why_none(recipe.step, specs),
        presentation=recipe.presentations(specs),
        ct_intensities={
            index: intensity
            for member in reversed(recipe.members)  # the first that has a channel as CT goes before the others
            for index, intensity in ct_intensities_of(specs[member.model]).items()
        },
    )
