"""From a colleague's zip to a model that is served, in one step: export, build, prove."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctseg.deploy.build import BuildOptions, build_entry
from ctseg.deploy.bundle import Bundle, source_precision
from ctseg.deploy.export import ExportOptions, LeftOutError, export_model
from ctseg.deploy.parity_cases import prepare_scans, preprocessed_cases
from ctseg.deploy.recipe_build import build_recipe
from ctseg.deploy.recipe_bundle import RecipeBundle
from ctseg.deploy.recipe_export import TrainedRecipe, export_recipe
from ctseg.deploy.tensorrt_plan import TensorRt
from ctseg.deploy.trained_recipe import load_trained_recipe
from ctseg.errors import InputError, SetupError
from ctseg.files.folders import require_writable
from ctseg.files.owned_folder import owned_folder
from ctseg.files.signals import signals_later
from ctseg.model_spec import Precision
from ctseg.nnunet.choosing import choose
from ctseg.nnunet.folds import Fold
from ctseg.nnunet.results_folder import ANY_MODEL, Choice
from ctseg.predict.whole_scan import require_usable_name, scan_entry
from ctseg.serving.entries import Backend
from ctseg.serving.installation import find_server

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeployOptions:
    """How a trained model is put into service.

    Attributes:
        name: Name of the model; None takes the data set's.
        configurations: Which, where there are several; see :func:`ctseg.nnunet.choosing.choose`.
        choice: Trainer and plans, where there are several.
        folds: Which; None takes those that are there.
        checkpoint: Name of the checkpoint file in the folders of the folds.
        precision: What the server computes in.
        backend: Triton's; ``auto`` takes TensorRT where this machine has a GPU and TensorRT, else the python backend.
        trust: Load whatever the files ask for.
    """

    name: str | None = None
    configurations: tuple[str, ...] = ()
    choice: Choice = ANY_MODEL
    folds: tuple[Fold, ...] | None = None
    checkpoint: str = "checkpoint_final.pth"
    precision: Precision = "fp32"
    backend: Literal["auto", "python", "tensorrt"] = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        if self.name is not None:
            require_usable_name(self.name)


@dataclass(frozen=True)
class Deployed:
    """A model that can be served.

    Attributes:
        name: In the repository.
        version: Of it.
        backend: That runs its network.
        proven: By what, for people.
    """

    name: str
    version: int
    backend: Backend
    proven: str


def deploy(
    source: Path,
    repository: Path,
    options: DeployOptions = DeployOptions(),
    *,
    scans: Sequence[Path] = (),
    report: Callable[[str], None] = _log.info,
) -> Deployed:
    """Export a trained model, build it for this machine, and prove it; all of it, or nothing is left.

    Args:
        source: nnU-Net's zip, or a results folder.
        repository: Triton's model repository.
        options: How.
        scans: Real scans to prove it with; without any, nnU-Net's preprocessed training data.
        report: Takes lines that say how it goes.

    Raises:
        CheckpointError: The model cannot be read, or it is not said which one is meant.
        InputError: A scan cannot be used.
        ParityError: What was exported, built or served does not give PyTorch's labels.
        SpecError: ctseg does not reproduce the model, or the repository has another one of its name.
        SetupError: Something is missing on this machine.
        OutputError: The repository cannot be written.
    """
    require_writable(repository)
    require_there(scans)
    chosen = choose(source, options.configurations, options.choice)
    if chosen.why:
        report(chosen.why)
    backend = _backend(options.backend, report)
    trained = load_trained_recipe(
        [(source, choice) for choice in chosen.choices],
        folds=options.folds,
        checkpoint=options.checkpoint,
        trust=options.trust,
    )
    # the entry is proven live by a server of this machine, which runs the python backend alone
    live = backend == "python" and _has_server(report)
    precisions: tuple[Precision, ...] = tuple(dict.fromkeys(("fp32", source_precision(options.precision, backend))))
    export = ExportOptions(name=options.name, precisions=precisions)
    build = BuildOptions(backend=backend, precision=options.precision, prove_live=live)
    with owned_folder("ctseg-deploy-") as folder:
        try:
            bundle = export_trained(trained, folder / "bundle", export, scans, report=report)
        except LeftOutError as error:
            raise error.why[0] from error
        if isinstance(bundle, RecipeBundle):
            with _all_or_nothing(repository, [*bundle.members, bundle.recipe.name]):
                recipe, version = build_recipe(bundle.folder, repository, build, report=report)
            proven = "member by member" + (", and all together on a live server" if live else "")
            return Deployed(recipe.name, version, backend, proven)
        with _all_or_nothing(repository):  # an entry comes whole by itself
            entry = build_entry(bundle.folder, repository, build, report=report)
    proven = f"{entry.newest.spec.parity.summary}{', and on a live server' if live else ''}"
    return Deployed(entry.newest.spec.name, entry.newest.version, backend, proven)


def require_there(scans: Sequence[Path]) -> None:
    """Refuse scans that are not there before minutes are spent on the model.

    Raises:
        InputError: One is missing.
    """
    for scan in scans:
        if not scan.exists():
            raise InputError(f"{scan}: expected a scan or a folder of scans: no such file or folder")


def export_trained(
    trained: TrainedRecipe,
    output: Path,
    options: ExportOptions,
    scans: Sequence[Path] = (),
    *,
    report: Callable[[str], None] = _log.info,
) -> Bundle | RecipeBundle:
    """Export one model, or several that work together; proven with scans, or with nnU-Net's preprocessed data.

    Raises:
        See :func:`ctseg.deploy.export.export_model` and :func:`ctseg.deploy.recipe_export.export_recipe`.
    """
    if not trained.is_single:
        return export_recipe(trained, output, options, scans=scans, report=report)
    model = trained.members[0].model
    if scans:
        spec = model.spec(name=options.name or model.default_name, mirroring="none", max_batch_size=1)
        cases, source = prepare_scans(scans, spec), "scans"
    else:
        cases, source = preprocessed_cases(model), "nnU-Net's preprocessed training data"
    return export_model(model, output, options, cases=cases, data_source=source, report=report)


def _backend(wanted: str, report: Callable[[str], None]) -> Backend:
    if wanted == "python":
        return "python"
    if wanted == "tensorrt":
        return "tensorrt"
    try:
        TensorRt()
    except SetupError as error:
        report(f"backend: python, on the CPU ({error})")
        return "python"
    report("backend: tensorrt")
    return "tensorrt"


def _has_server(report: Callable[[str], None]) -> bool:
    try:
        find_server()
    except SetupError as error:
        report(f"not proven on a live server ({error})")
        return False
    return True


@contextlib.contextmanager
def _all_or_nothing(repository: Path, models: Sequence[str] = ()) -> Iterator[None]:
    """Remove what the block has put into a repository if it does not end well: first members of a recipe, the folder.

    Args:
        repository: Triton's model repository.
        models: What the block writes one after the other; entries that were there before stay.
    """
    was_there = repository.is_dir()
    names = [name for model in models for name in (model, scan_entry(model)) if not (repository / name).exists()]
    try:
        yield
    except BaseException:
        with signals_later():
            for name in names:
                shutil.rmtree(repository / name, ignore_errors=True)
            if (
                not was_there
                and repository.is_dir()
                and all(path.name.startswith(".") for path in repository.iterdir())
            ):
                shutil.rmtree(repository, ignore_errors=True)
        raise
