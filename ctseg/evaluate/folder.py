"""A folder of label maps against a folder of references."""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from ctseg.compiled.parallel import num_threads
from ctseg.documents import canonical
from ctseg.errors import CtsegError, InputError
from ctseg.evaluate.case import ComparedCase, compare_case, label_scores
from ctseg.evaluate.compared_labels import ComparedLabels, labels_named_beside
from ctseg.evaluate.evaluation import EvaluatedCase, Evaluation, LabelScores, RefusedCase
from ctseg.evaluate.surfaces import DEFINITION, SurfaceScores
from ctseg.files.formats import stem_of
from ctseg.files.identity import printable
from ctseg.files.listing import list_folder

TOLERANCES_MM = (1.0, 3.0)
"""A voxel of most CT within a slice; and what TotalSegmentator publishes, so that numbers stand beside each other."""
_MOST_THREADS = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairedFiles:
    """Which files of two folders belong together, by their names without the ending.

    Attributes:
        pairs: Label map and reference by the case, whose name is that of the files.
        missing: Cases that have a reference and no label map.
        surplus: Cases that have a label map and no reference; these, and those before and after, as they are told, on
            one line.
        refused: Cases of which a folder has several files.
    """

    pairs: Mapping[str, tuple[Path, Path]]
    missing: tuple[str, ...]
    surplus: tuple[str, ...]
    refused: tuple[RefusedCase, ...]


def pair_files(labels: Path, references: Path, cases: Collection[str] | None = None) -> PairedFiles:
    """Return which files of two folders belong together.

    Args:
        labels: Folder of label maps, in any format that is read; hidden files, folders and files of other kinds are
            none, such as a report or probabilities.
        references: Folder of references.
        cases: Only these; None takes all.

    Raises:
        InputError: A folder cannot be read.
    """
    found = [_by_case(folder, cases) for folder in (labels, references)]
    refused, pairs, taken = [], {}, set[str]()
    for case in sorted({*found[0], *found[1]}):
        files = [by_case.get(case, []) for by_case in found]
        if doubled := next((several for several in files if len(several) > 1), None):
            names = " and ".join(printable(file.name) for file in doubled)
            told = printable(case)
            text = f"case {told}: {names} in {printable(str(doubled[0].parent))} are one case: take one away"
            refused.append(RefusedCase(case=told, error=text))
            taken.add(case)
        elif all(files):
            pairs[case] = (files[0][0], files[1][0])
    return PairedFiles(
        pairs,
        tuple(printable(case) for case in sorted(set(found[1]) - set(found[0]) - taken)),
        tuple(printable(case) for case in sorted(set(found[0]) - set(found[1]) - taken)),
        tuple(refused),
    )


def _by_case(folder: Path, cases: Collection[str] | None) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in list_folder(folder).scans:
        if cases is None or stem_of(file) in cases:
            found.setdefault(stem_of(file), []).append(file)
    return found


def evaluate_folder(
    labels: Path,
    references: Path,
    compared: ComparedLabels | None = None,
    *,
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    cases: Collection[str] | None = None,
    threads: int | None = None,
    earlier: Evaluation | None = None,
    case_done: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Compare label maps with references, file by file.

    As many cases are in memory as there are threads, and of each label that is worked on the voxels of its box.

    Args:
        labels: Folder of label maps, such as the output of a run.
        references: Folder of references.
        compared: Which labels count; None takes those that a ``dataset.json`` in or beside the folder of references
            names, else those of the one model that wrote the label maps, else every value that a file has.
        tolerances_mm: Of the normalised surface Dice; each counts once.
        cases: Only these; None takes all.
        threads: That work at once; None takes the machine's processors, up to eight.
        earlier: An evaluation that is returned as it is where it says all that this one would say: nothing was
            changed since.
        case_done: Told the name of each case that ends, on the thread that called.

    Returns:
        What they score; nothing is written. A case that cannot be compared is among ``refused``, and stops no other.

    Raises:
        InputError: A folder cannot be read, or there is neither a label map nor a reference in it.
        ValueError: A tolerance is negative, or there is none.
    """
    if not tolerances_mm or min(tolerances_mm) < 0:
        raise ValueError(f"expected tolerances of 0 mm and more, found {tolerances_mm}")
    tolerances_mm = tuple(dict.fromkeys(map(float, tolerances_mm)))
    files = pair_files(labels, references, cases)
    if not files.pairs and not files.refused:
        raise InputError(
            f"{labels}: expected label maps with the names of those in {references}, found "
            f"{_some('label maps', files.surplus)} and {_some('references', files.missing)}"
        )
    compared = compared or labels_named_beside(labels, references)
    fingerprint = _fingerprint(files, compared, tolerances_mm)
    if earlier is not None and earlier.fingerprint == fingerprint:
        return earlier
    done, refused = _compare(
        files.pairs, compared, tolerances_mm, threads or min(_MOST_THREADS, num_threads()), case_done
    )
    if compared is None:
        done, compared = _with_all_values(done, len(tolerances_mm))
    _tell_unnamed(done)
    return Evaluation(
        labels=compared.values,
        keys=compared.keys,
        ignore_label=compared.ignore_label,
        tolerances_mm=tolerances_mm,
        fingerprint=fingerprint,
        cases=tuple(
            EvaluatedCase(
                case=printable(case),
                labels=done[case].scores,
                prediction_file=printable(str(files.pairs[case][0])),
                reference_file=printable(str(files.pairs[case][1])),
            )
            for case in sorted(done)
        ),
        missing=files.missing,
        surplus=files.surplus,
        refused=tuple(sorted((*files.refused, *refused), key=lambda one: one.case)),
    )


def _compare(
    pairs: Mapping[str, tuple[Path, Path]],
    compared: ComparedLabels | None,
    tolerances_mm: Sequence[float],
    threads: int,
    case_done: Callable[[str], None],
) -> tuple[dict[str, ComparedCase], list[RefusedCase]]:
    """Compare cases on threads: one pool reads and counts, the other one works on the surfaces of all of them."""
    done: dict[str, ComparedCase] = {}
    refused = []
    with ThreadPoolExecutor(threads) as surfaces, ThreadPoolExecutor(threads) as pool:
        running: dict[Future[ComparedCase], str] = {}
        left = sorted(pairs)[::-1]
        try:
            while left or running:
                while left and len(running) < threads:
                    case = left.pop()
                    job = pool.submit(
                        compare_case, printable(case), *pairs[case], compared, tolerances_mm, surfaces=surfaces
                    )
                    running[job] = case
                for job in wait(running, return_when=FIRST_COMPLETED).done:
                    case = running.pop(job)
                    try:
                        done[case] = job.result()
                    except (CtsegError, MemoryError) as error:
                        refused.append(RefusedCase(case=printable(case), error=_told(printable(case), error)))
                    case_done(case)
        finally:
            surfaces.shutdown(wait=False, cancel_futures=True)
    return done, refused


def _told(case: str, error: Exception) -> str:
    text = printable(str(error)) or "not enough memory"
    return text if text.startswith(f"case {case}:") else f"case {case}: {text}"


def _with_all_values(
    done: Mapping[str, ComparedCase], tolerances: int
) -> tuple[dict[str, ComparedCase], ComparedLabels]:
    """Give every case the values that only others have, as neither of its files has them."""
    values = sorted({int(name) for case in done.values() for name, scores in case.scores.items() if _is_there(scores)})
    names = [str(value) for value in values or [1]]
    nan = float("nan")
    nothing = SurfaceScores(nan, nan, (nan,) * tolerances)
    completed = {
        case: ComparedCase(
            {name: found.scores.get(name) or label_scores(0, 0, 0, found.voxels, 0, nothing) for name in names},
            found.voxels,
            found.unnamed,
        )
        for case, found in done.items()
    }
    return completed, ComparedLabels({name: (int(name),) for name in names})


def _is_there(scores: LabelScores) -> bool:
    return scores.n_pred + scores.n_ref > 0


def _tell_unnamed(done: Mapping[str, ComparedCase]) -> None:
    unnamed = {value: case for case, found in sorted(done.items(), reverse=True) for value in found.unnamed}
    if unnamed:
        told = ", ".join(f"{value} (in {printable(case)})" for value, case in sorted(unnamed.items())[:10])
        logger.warning("values that no label has count for nothing: %s%s", told, " …" if len(unnamed) > 10 else "")


def _fingerprint(files: PairedFiles, compared: ComparedLabels | None, tolerances_mm: Sequence[float]) -> str:
    """Return the SHA-256 of what is compared, and of the names, sizes and times of all files."""
    told = []
    for case, pair in files.pairs.items():
        for path in pair:
            try:
                status = path.stat()
                told.append([case, str(path.absolute()), status.st_size, status.st_mtime_ns])
            except OSError:
                told.append([case, str(path.absolute()), -1, -1])  # told when it is read
    refused = [one.error for one in files.refused]
    asked = [None if compared is None else asdict(compared), list(tolerances_mm), DEFINITION]
    return hashlib.sha256(canonical([asked, told, refused, files.missing, files.surplus])).hexdigest()


def _some(what: str, names: Sequence[str]) -> str:
    return (
        f"no {what}" if not names else f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
    )
