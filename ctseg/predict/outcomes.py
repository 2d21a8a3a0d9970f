"""What became of each case: one small file a case, in the output folder's hidden memory.

``OUT/.ctseg/outcomes/<key>.json`` is written once the case has ended, at once and whole. Every command that
writes into a folder adds to it, and none forgets what others found there; ``report.json`` is folded from it.
"""

import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ctseg.documents import Document
from ctseg.errors import CtsegError, OutputError
from ctseg.files.atomic import write_text
from ctseg.files.identity import KnownFile, printable
from ctseg.files.regular import open_regular

logger = logging.getLogger(__name__)

MEMORY_NAME = ".ctseg"
"""Folder in an output folder: outcomes, claims, and what runs that live are writing."""
_SLUG_LENGTH = 48
_SLUG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


@contextmanager
def memory_at_hand(output: Path) -> Iterator[None]:
    """Look into a folder's memory in the block; what this user may not read there, or no disk gives, is told.

    Args:
        output: The folder.

    Raises:
        OutputError: It cannot be looked at.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{error.filename or output / MEMORY_NAME}: cannot be looked at: {error.strerror or error}: what became of "
            f"the cases in {output} stands there: let this user read it, or name another folder"
        ) from error


class CaseError(Document):
    """Why a case failed; ``settings`` are the names of parameters that would help."""

    type: str
    message: str
    settings: tuple[str, ...] = ()


class StageSeconds(Document):
    """Wall-clock seconds of a case in each stage; stages of several cases overlap.

    ``network`` is what the case waited for logits, or for the label map of a whole scan; ``restore`` runs in between.
    """

    read: float = 0.0
    prepare: float = 0.0
    network: float = 0.0
    restore: float = 0.0
    write: float = 0.0
    total: float = 0.0


class Options(Document):
    """What the user may vary and the labels depend on."""

    tile_step_size: float
    mirroring: bool
    dicom_rows: Literal["down", "up"] = "down"


class RanOn(Document):
    """A server that answered while a case was segmented, and what runs the network there.

    Attributes:
        model: Of the network.
        runtime: As the build found it.
        relative_l2: By how much its logits differed from PyTorch's when it was built; None: not known.
    """

    server: str
    model: str
    runtime: str
    relative_l2: float | None = None


class MadeByMember(Document):
    """A model of a recipe, as it was served."""

    model: str
    model_version: str
    spec_digest: str


class MadeBy(Document):
    """Which model, on which servers, with which options; and the run that asked them.

    Attributes:
        run: Name of the run, unique.
        spec_digest: Of the model's spec, or of the recipe.
        members: Models of the recipe, in its order; none for a model.
        part: ``I/N`` where the run did one part of its input.
        list_digest: Of the names of all cases of the whole input; tells parts that saw different lists.
    """

    run: str
    model: str
    model_version: str
    spec_digest: str
    parity: str = "untested"
    servers: tuple[str, ...] = ()
    transport: str = "grpc"
    members: tuple[MadeByMember, ...] = ()
    options: Options
    part: str | None = None
    list_digest: str | None = None

    def makes_the_same(self, other: "MadeBy") -> bool:
        """Whether both give the same labels for the same scan."""
        return (self.spec_digest, self.options) == (other.spec_digest, other.options)


class WrittenSegment(Document):
    """A label or region in the DICOM objects of a case.

    Attributes:
        number: In the objects, from 1.
        name: Of the label.
        values: In the label map, that belong to it.
    """

    number: int
    name: str
    values: tuple[int, ...]


class WrittenObject(Document):
    """A DICOM object of a case; its UIDs are derived from its content, and name no patient.

    Attributes:
        format: As it was asked for, such as ``dicom_seg``.
        name: Of the file.
        series_uid: SeriesInstanceUID.
        instance_uid: SOPInstanceUID.
    """

    format: str
    name: str
    series_uid: str
    instance_uid: str


class FailedFormat(Document):
    """A format in which a case could not be written, while others could.

    Attributes:
        format: As it was asked for, such as ``dicom_rtstruct``.
        error: Why.
        foreseen: Whether the scan's headers say so: trying again changes nothing.
    """

    format: str
    error: CaseError
    foreseen: bool = False


class Outcome(Document):
    """What became of one case.

    Attributes:
        case: Its name, see :func:`ctseg.files.identity.printable`.
        status: ``kept``: what stands in its place is not ctseg's, and was left alone. ``skipped`` is a run's word for
            a case that was done before it began, and stands in no file.
        made_by: By what; None in what an older ctseg wrote.
        inputs: The bytes that were segmented, in order of the channels.
        outputs: What was written; all that ctseg calls its own.
        failed_formats: Formats that were asked for and could not be written; the others are there.
        segments: Of the DICOM objects.
        objects: The DICOM objects among ``outputs``.
        volumes_ml: Of each label by its name.
        agreement: How far the network's folds agree, 0 to 1, of each label that they found, by its name; empty where
            that was not asked for, or the network cannot say.
        warnings: What people are to know, what matters most first.
        segmentation_warnings: Those of them that whoever segmented it told: they go with the labels, where others are
            told anew whenever files are written of the labels; None in what an older ctseg wrote.
        bytes_sent: Of tensors, repeated requests not counted.
        bytes_received: Likewise.
        server_seconds: Of the stages in the server, where that cut the windows; ``waited`` is for its turn.
        ran_on: Servers that answered meanwhile, of other cases' windows too where cases overlap.
        ended: When, in UTC.
    """

    schema_version: Literal[1] = 1
    case: str
    status: Literal["ok", "failed", "kept", "skipped"]
    made_by: MadeBy | None = None
    error: CaseError | None = None
    inputs: tuple[KnownFile, ...] = ()
    outputs: tuple[KnownFile, ...] = ()
    failed_formats: tuple[FailedFormat, ...] = ()
    segments: tuple[WrittenSegment, ...] = ()
    objects: tuple[WrittenObject, ...] = ()
    volumes_ml: Mapping[str, float] = {}
    warnings: tuple[str, ...] = ()
    segmentation_warnings: tuple[str, ...] | None = None
    seconds: StageSeconds = StageSeconds()
    windows: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    agreement: Mapping[str, float] = {}
    server_seconds: Mapping[str, float] = {}
    ran_on: tuple[RanOn, ...] = ()
    ended: str = ""


class OutcomeStore:
    """The outcomes in an output folder.

    Args:
        output: The folder.
        through: Where files lie that are not whole yet, on the same file system; None: beside the outcomes.
    """

    def __init__(self, output: Path, *, through: Path | None = None) -> None:
        self.folder = output / MEMORY_NAME / "outcomes"
        self._through = through
        self._told: set[Path] = set()

    def read(self, case: str) -> Outcome | None:
        """Return what became of a case; None where nothing is known, or nothing that can be used, which is told once.

        Raises:
            OSError: The file is there and cannot be read.
        """
        path = self._path(case)
        try:
            outcome = _read(path)
        except FileNotFoundError:
            return None
        if outcome is None and path not in self._told:
            self._told.add(path)
            logger.warning("%s: cannot be used: nothing is known of case %s", path, printable(case))
        return outcome

    def digest(self, case: str) -> str:
        """Return the SHA-256 of a case's outcome as it stands, the same on every host; empty: there is none.

        Raises:
            OSError: The file is there and cannot be read.
        """
        try:
            return hashlib.sha256(self._path(case).read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def write(self, case: str, outcome: Outcome) -> None:
        """Write down what became of a case.

        Args:
            case: Its name.
            outcome: What became of it.

        Raises:
            OutputError: It cannot be written; what was known before stays.
        """
        text = json.dumps(outcome.model_dump(mode="json", exclude_defaults=True))
        write_text(self._path(case), text, through=self._through)

    def all(self) -> Iterator[tuple[Path, Outcome | None]]:
        """Yield every outcome with its file, in order of the files' names; None for one that cannot be used."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.json")):
            if not path.name.startswith("."):
                with suppress(FileNotFoundError):
                    yield path, _read(path)

    def written(self) -> dict[str, tuple[int, int]]:
        """Return inode and time of each outcome's file by its key: another, and it was written since."""
        if not self.folder.is_dir():
            return {}
        with os.scandir(self.folder) as entries:
            return {
                entry.name.removesuffix(".json"): (entry.inode(), entry.stat().st_mtime_ns)
                for entry in entries
                if entry.name.endswith(".json")
            }

    def stamp(self, key: str) -> tuple[int, int] | None:
        """Return inode and time of one outcome's file, as :meth:`written` has them; None: there is none."""
        try:
            found = (self.folder / f"{key}.json").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _path(self, case: str) -> Path:
        return self.folder / f"{key_of(case)}.json"


def key_of(case: str) -> str:
    """Return the name of a case's files in the memory: plain ASCII, short, and its own for every name."""
    slug = "".join(c if c in _SLUG else "_" for c in case[:_SLUG_LENGTH])
    return f"{slug}-{hashlib.sha256(os.fsencode(case)).hexdigest()[:16]}"


def names_of_outputs(folder: Path) -> frozenset[str]:
    """Return the names of the files that ctseg has written into a folder: they are no scans."""
    outcomes = (outcome for _, outcome in OutcomeStore(folder).all())
    return frozenset(file.name for outcome in outcomes if outcome is not None for file in outcome.outputs)


def _read(path: Path) -> Outcome | None:
    """Return what an outcome's file says; None where it cannot be used.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
    """
    try:
        with open_regular(path) as file:
            return Outcome.model_validate_json(file.read())
    except ValidationError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a pipe, a folder
            return None
        raise


def error_of(exception: BaseException, *, quotes: bool = True) -> CaseError:
    """Return the outcome's form of an exception; one that ctseg did not raise on purpose says so.

    Args:
        exception: What was raised.
        quotes: Whether the text of an unexpected one is told; what libraries say of DICOM may quote a patient's name.
    """
    if isinstance(exception, CtsegError):
        return CaseError(type=type(exception).__name__, message=str(exception), settings=exception.settings)
    if isinstance(exception, MemoryError):
        text = (
            f"the memory did not suffice ({str(exception) or 'MemoryError'}): look whether its voxel size is right; if "
            "so, segment it by itself, or on a machine with more memory"
        )
        return CaseError(type="MemoryError", message=text)
    if _is_of_a_thread_that_could_not_start(exception):
        text = (
            f"no thread could be started ({exception}): let this user or container have more processes and threads "
            "(ulimit -u, pids.max), and segment the case again"
        )
        return CaseError(type=type(exception).__name__, message=text)
    told = f": {exception!r}" if quotes else f" {type(exception).__name__}{_place_of(exception)}"
    return CaseError(type=type(exception).__name__, message=f"unexpected{told}")


def _place_of(exception: BaseException) -> str:
    """Return in which line of which module an exception was raised, in words."""
    trace = exception.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"


def _is_of_a_thread_that_could_not_start(exception: BaseException) -> bool:
    """Whether an exception came out of starting a thread, which has no type of its own."""
    trace = exception.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is threading.Thread.start.__code__
