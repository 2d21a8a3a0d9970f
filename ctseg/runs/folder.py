"""A folder of scans, segmented by a model: from names and addresses to finished files."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ctseg.errors import ServerAwayError, ServerUnavailableError, SetupError
from ctseg.files.cases import Case, cases_of, with_previous_stage
from ctseg.files.folders import require_writable
from ctseg.files.scans import FoundScans, find_scans
from ctseg.files.signals import signals_as_exit
from ctseg.predict.case_files import tell_of_formats
from ctseg.predict.contract import ScanContract
from ctseg.predict.folder import FolderRun, check_can_be_written
from ctseg.predict.model_notes import read_model_notes
from ctseg.predict.options import BatchOptions
from ctseg.predict.ownership import OwnFiles
from ctseg.predict.progress import Progress
from ctseg.predict.report import Report
from ctseg.predict.segmenter import CaseSegmenter
from ctseg.runs.model import ServedModel, known_contract
from ctseg.runs.where import opened_segmenter

logger = logging.getLogger(__name__)


def segment_folder(
    input_path: Path,
    output: Path,
    model: ServedModel,
    options: BatchOptions,
    *,
    progress_for: Callable[[int], Progress] = lambda cases: Progress(),  # noqa: ARG005 (how many there are)
) -> Report:
    """Segment a scan or a folder of scans.

    The input, the output folder, and what is known of the model are looked at before a server is started or asked.

    Args:
        input_path: A scan, or a folder of scans, see :func:`ctseg.files.cases.find_cases`.
        output: Folder for label maps and ``report.json``; made if missing.
        model: Which model, and who serves it.
        options: How cases are segmented.
        progress_for: Returns what a person sees, for so many cases: those of the part.

    Returns:
        The report; failed cases are in it.

    Raises:
        ServerAwayError: No server answers, though servers have answered for this output folder before.
        CtsegError: Nothing could be segmented; its children say why.
    """
    scans = scans_for(input_path, output, options)
    if (contract := known_contract(model)) is not None:
        _checked_cases(scans, contract, output, options)
    with signals_as_exit(), opened_for(output, model, options) as segmenter:
        cases = cases_for(scans, segmenter.contract, output, options)
        return FolderRun(segmenter, output, options, progress_for(len(options.part.of(cases)))).segment(cases)


def scans_for(input_path: Path, output: Path, options: BatchOptions) -> FoundScans:
    """Look at the input and the output folder of a run, before anybody is asked for the model.

    Args:
        input_path: A scan, or a folder of scans.
        output: The output folder; may be missing.
        options: Whether sub-folders count.

    Raises:
        InputError: There are no scans.
        SetupError: The input needs a package that is not installed, or names cannot be made of what was asked for.
        OutputError: Nothing can be written there.
    """
    scans = find_scans(
        input_path,
        recursive=options.recursive,
        own=OwnFiles,
        not_into=(output,),
        series=options.series,
        case_name_from=options.case_name_from,
    )
    require_writable(output)
    return scans


def cases_for(scans: FoundScans, contract: ScanContract, output: Path, options: BatchOptions) -> list[Case]:
    """Find the cases of a run, those of the other parts too.

    Args:
        scans: Those of the input.
        contract: What the model takes and gives; warnings tell if nobody has proven it, and if it cannot say how far
            folds agree though that is asked for.
        output: The output folder.
        options: How cases are segmented.

    Raises:
        SpecError: Its label maps cannot be written.
        SetupError: The model cannot be used with the options, or a label map cannot be written there.
    """
    if contract.doubt:
        logger.warning("%s (see ctseg build)", contract.doubt)
    if options.agreement and contract.no_agreement:
        logger.warning("the report will not say how far folds agree: %s", contract.no_agreement)
    cases = _checked_cases(scans, contract, output, options)
    tell_of_formats(cases, contract, options)
    return cases


def check_options(contract: ScanContract, options: BatchOptions) -> None:
    """Refuse a model that cannot be used with the options.

    Raises:
        SetupError: It mirrors in its graph, has no probabilities, or needs label maps of a previous stage, or none.
    """
    _check_mirroring(contract, options)
    _check_outputs(contract, options)
    _previous_stage(contract, options)


def _checked_cases(scans: FoundScans, contract: ScanContract, output: Path, options: BatchOptions) -> list[Case]:
    check_options(contract, options)
    cases = cases_of(scans, len(contract.channels))
    if (folder := _previous_stage(contract, options)) is not None:
        cases = with_previous_stage(cases, folder, contract.file_ending)
    check_can_be_written(cases, contract, output, options)
    return cases


@contextmanager
def opened_for(output: Path, model: ServedModel, options: BatchOptions) -> Iterator[CaseSegmenter]:
    """Connect to a model; that no server answers is no wrong address where one has answered before.

    Args:
        output: The output folder, which knows whether one has.
        model: Which model, and who serves it.
        options: How cases are segmented.

    Raises:
        ServerAwayError: No server answers, though servers have answered for this output folder before.
        CtsegError: See :func:`ctseg.runs.where.opened_segmenter`.
    """
    with ExitStack() as stack:
        try:
            opening = opened_segmenter(model, options.window_options, saves_probabilities=options.save_probabilities)
            segmenter = stack.enter_context(opening)
        except ServerUnavailableError as error:
            if not read_model_notes(output):
                raise
            raise ServerAwayError(
                f"{error}: what is not done in {output} is left, start it again when a server answers",
                settings=error.settings,
            ) from error
        yield segmenter


def _check_outputs(contract: ScanContract, options: BatchOptions) -> None:
    if options.save_probabilities and not contract.has_probabilities:
        raise SetupError(
            f"{contract.name} has no probabilities to write: its labels are those of several models",
            settings=("save_probabilities",),
        )


def _previous_stage(contract: ScanContract, options: BatchOptions) -> Path | None:
    """Return the folder of the previous stage's label maps, for a model that needs them."""
    folder = options.prev_stage_predictions
    if not contract.previous_stage:
        if folder is not None:
            raise SetupError(
                f"{contract.name} takes no label maps of a previous stage: only the second stage of a cascade does, by "
                "its own name; the recipe of both runs the first stage itself",
                settings=("prev_stage_predictions",),
            )
        return None
    if folder is None:
        raise SetupError(
            f"{contract.name} is the second stage of a cascade and needs the label maps of {contract.previous_stage}: "
            "use the recipe of both, or name the folder with the first stage's label maps",
            settings=("model", "prev_stage_predictions"),
        )
    if not folder.is_dir():
        raise SetupError(f"{folder}: no such folder of label maps", settings=("prev_stage_predictions",))
    return folder


def _check_mirroring(contract: ScanContract, options: BatchOptions) -> None:
    if not options.mirroring and contract.mirrors_in_graph:
        raise SetupError(
            f"{contract.name} mirrors inside its graph, which cannot be switched off here: use an entry that was "
            "exported with mirroring in the client, or without"
        )
