"""One case of a run for its row and its page: what became of it, pictures of it, and what a viewer shows."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.errors import CtsegError, InputError
from ctseg.evaluate.evaluation import LabelScores
from ctseg.evaluate.pages.colours import RGB, colours_of, colours_of_values, css
from ctseg.evaluate.pages.pictures import SOFT_TISSUE_HU, Planes, largest_section, three_planes
from ctseg.evaluate.pages.scene import CT_HU, outline_of, renumbered, scene_of_labels, scene_of_scan, values_in
from ctseg.files.cases import Case
from ctseg.files.formats import format_of
from ctseg.files.identity import ScanPart, printable
from ctseg.files.volume import Volume, read_label_map, read_volume, read_volume_header
from ctseg.predict.ledger import is_scan_of
from ctseg.predict.model_notes import ModelNote
from ctseg.predict.outcomes import Outcome

logger = logging.getLogger(__name__)

_THUMBNAIL = 120
_UNKNOWN = ModelNote(channels=(), labels={})


@dataclass(frozen=True)
class PageLabel:
    """A label of a case.

    Attributes:
        name: As the model has it.
        display_name: As people call it.
        colour: As style sheets write it.
        volume_ml: None where it is not known.
        agreement: Of the folds, 0 to 1.
        scores: Against the reference.
        places: Of its values in the labels of the viewer, from 1.
    """

    name: str
    display_name: str
    colour: str
    volume_ml: float | None = None
    agreement: float | None = None
    scores: LabelScores | None = None
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Viewed:
    """What a viewer shows, as packed NIfTI files in text.

    Attributes:
        scan: 8 bits a voxel.
        labels: Places of values, from 1.
        outline: Of the reference, likewise, and one place more for a dark line beside it; empty where there is none.
        windows: Buttons: name, least and most value.
        colours: Of each place.
        note: How the scan was made smaller.
        start_mm: Where to look first: (right, front, up).
    """

    scan: str
    labels: str
    outline: str
    windows: tuple[tuple[str, float, float], ...]
    colours: tuple[RGB, ...]
    note: str
    start_mm: tuple[float, float, float]


@dataclass(frozen=True)
class RunCase:
    """A case as its row and its page tell it.

    Attributes:
        name: Of the case.
        status: ``ok``, ``failed``, ``kept`` or ``not done``.
        told: What people are to know beside warnings: why it failed, or why nothing is shown.
        outcome: None for a case that nobody has ended.
        model: Of the outcome, as people call it.
        labels: That the model knows, or the outcome.
        planes: Pictures; None where there are none.
        page: Name of its page; empty where it has none.
    """

    name: str
    status: str
    told: tuple[str, ...] = ()
    outcome: Outcome | None = None
    model: str = ""
    labels: tuple[PageLabel, ...] = ()
    planes: Planes | None = None
    page: str = ""

    @property
    def lowest_dice(self) -> float | None:
        """Of the labels that have one; None: none has."""
        return min(_defined(label.scores.dice for label in self.labels if label.scores), default=None)

    @property
    def mean_dice(self) -> float | None:
        """Of the labels that have one; None: none has."""
        found = _defined(label.scores.dice for label in self.labels if label.scores)
        return sum(found) / len(found) if found else None

    @property
    def lowest_agreement(self) -> float | None:
        """Of the labels that have one; None: none has."""
        return min(_defined(label.agreement for label in self.labels), default=None)


@dataclass(frozen=True)
class CaseSource:
    """What is known of a case, and where its files are.

    Attributes:
        outcome: What became of it.
        note: Of the model.
        case: Its scan; None: nobody said where it is.
        folder: Of its label map.
        reference: A label map to compare with; None: there is none.
        scores: By the label's name.
        not_compared: Why it has no scores although it has a reference; empty where it has.
        has_input: Whether somebody said where scans are.
    """

    outcome: Outcome
    note: ModelNote | None
    case: Case | None
    folder: Path
    reference: Path | None = None
    scores: Mapping[str, LabelScores] = field(default_factory=dict)
    not_compared: str = ""
    has_input: bool = True


def told_case(source: CaseSource) -> RunCase:
    """Return a case without pictures: what its outcome says."""
    outcome, note = source.outcome, source.note or _UNKNOWN
    names = {**note.labels, **dict.fromkeys(outcome.volumes_ml, ()), **dict.fromkeys(source.scores, ())}
    colours = _colours(note, names)
    labels = tuple(
        PageLabel(
            name=name,
            display_name=note.display_names.get(name, name),
            colour=css(colours[name]),
            volume_ml=outcome.volumes_ml.get(name),
            agreement=outcome.agreement.get(name),
            scores=source.scores.get(name),
        )
        for name in names
    )
    told = [outcome.error.message] if outcome.error else []
    told += [f"{failed.format} could not be written: {failed.error.message}" for failed in outcome.failed_formats]
    told += [f"not compared: {source.not_compared}"] if source.not_compared else []
    model = outcome.made_by.model if outcome.made_by else note.name
    return RunCase(outcome.case, outcome.status, tuple(told), outcome, model, labels)


def label_file_of(source: CaseSource) -> Path | None:
    """Return the file of a case's label map, in a format that can be read back; None: none was written."""
    for file in source.outcome.outputs:
        path = source.folder / file.name
        entry = format_of(path)
        if entry is not None and entry.write_labels is not None:
            # an outcome has names as people read them: with a line break in it, a file is called otherwise
            others = (other for other in source.folder.iterdir() if printable(other.name) == file.name)
            return path if path.exists() else next(others, path)
    return None


def reading_bytes(source: CaseSource) -> int:
    """Return about how much memory showing a case takes; 0 where its scan cannot be looked at.

    Raises:
        OSError: A header cannot be read.
    """
    if source.case is None or not source.case.channels:
        return 0
    try:
        header = read_volume_header(source.case.channels[:1], (source.note or _UNKNOWN).reader)
    except CtsegError:
        return 0
    voxels = math.prod(header.geometry.shape)
    return header.reading_bytes + 8 * voxels  # labels, reference and their readers


def shown_case(source: CaseSource, *, with_viewer: bool = True) -> tuple[RunCase, Viewed | None]:
    """Return a case with pictures and what its viewer shows, as far as its files are there and what they were.

    Args:
        source: The case.
        with_viewer: Whether a viewer is wanted; else pictures only.

    Returns:
        The case, without its page's name; what is missing, and why, is among what it tells.
    """
    told = told_case(source)
    if source.outcome.status != "ok":
        return told, None
    try:
        path, notes = _label_file(source), []
        if not _is_as_written(source, path):
            notes.append(
                f"{printable(path.name)} was changed since ctseg wrote it: pictures and viewer show it as it is now, "
                "the volumes are those of what ctseg wrote"
            )
        note = source.note or _UNKNOWN
        volume = _scan(source, note)
        labels = read_label_map(path, note.reader, volume)
        reference = None
        if source.reference is not None:
            try:
                reference = read_label_map(source.reference, note.reader, volume)
            except CtsegError as error:
                notes.append(f"the reference is not shown: {error}")
        case, viewed = _shown(told, note, volume, labels, reference, with_viewer=with_viewer)
        return replace(case, told=(*told.told, *notes)), viewed
    except CtsegError as error:
        why = f"not shown: {error}"
    except (OSError, MemoryError) as error:
        why = f"not shown: {getattr(error, 'strerror', None) or error or type(error).__name__}"
    except Exception as error:
        logger.exception("case %s: its pictures could not be made", told.name)
        why = f"not shown: unexpected {type(error).__name__}"
    return replace(told, told=(*told.told, why)), None


def _label_file(source: CaseSource) -> Path:
    path = label_file_of(source)
    if path is None:
        raise InputError("there is no label map in a format that pages read: segment with one, such as NIfTI, as well")
    if not path.exists():
        raise InputError(f"{printable(path.name)} has gone")
    return path


def _is_as_written(source: CaseSource, path: Path) -> bool:
    return any(file.is_still(ScanPart((path,))) for file in source.outcome.outputs if file.name == printable(path.name))


def _scan(source: CaseSource, note: ModelNote) -> Volume:
    """Return the first channel of a case, if it is what was segmented."""
    case = source.case
    if case is None:
        raise InputError(
            "its scan is not among the scans of the input: it was moved, or is called otherwise now"
            if source.has_input
            else "nobody said where its scan is: name the folder of scans",
            settings=() if source.has_input else ("input_path",),
        )
    if case.problem is not None:
        raise InputError(case.problem)
    if not source.outcome.inputs:
        raise InputError("an older ctseg did not write down which scan it is of")
    if not is_scan_of(source.outcome, case):
        raise InputError("its scan is not the one that was segmented: it was changed since, or another has its name")
    return read_volume(case.channels[:1], note.reader)


def _shown(
    told: RunCase,
    note: ModelNote,
    volume: Volume,
    labels: npt.NDArray[Any],
    reference: npt.NDArray[Any] | None,
    *,
    with_viewer: bool,
) -> tuple[RunCase, Viewed | None]:
    voxels, geometry = volume.voxels[0], volume.geometry
    values = sorted({*values_in(labels), *(values_in(reference) if reference is not None else ())})
    named = _named(told, note, values)
    colours = colours_of_values(named, _colours(note, named))
    counted = labels if labels.any() or reference is None else reference
    at = largest_section(counted)
    is_ct = not note.channels or note.channels[0].casefold().startswith("ct")
    window = SOFT_TISSUE_HU if is_ct else _percentiles(voxels)
    planes = three_planes(
        voxels, labels, colours, geometry, at=at, window_hu=window, outline=reference, size=_THUMBNAIL
    )  # fmt: skip
    places = {value: place for place, value in enumerate(values, start=1)}
    known = {label.name: label for label in told.labels}
    of_page = tuple(
        replace(
            known.get(name) or PageLabel(name, name, css(colours[of_label[0]])),
            places=tuple(places[value] for value in of_label if value in places),
        )
        for name, of_label in named.items()
    )
    case = replace(told, labels=of_page, planes=planes)
    if not with_viewer:
        return case, None
    scan = scene_of_scan(voxels, geometry, range_of_values=CT_HU if is_ct else window)
    of_labels = scene_of_labels(labels, geometry)
    outline = ""
    if reference is not None:
        of_reference = renumbered(scene_of_labels(reference, geometry), values)
        outline = outline_of(of_reference, beside=len(values) + 1).base64()
    buttons = (("Soft tissue", *SOFT_TISSUE_HU), ("Lung", -1024.0, 176.0), ("Bone", -450.0, 1016.0))
    return case, Viewed(
        scan=scan.base64(),
        labels=renumbered(of_labels, values).base64(),
        outline=outline,
        windows=buttons if is_ct else (("Whole range", *window),),
        colours=tuple(colours[value] for value in values),
        note=_note(geometry.shape, scan.geometry.shape, scan.slope, is_ct=is_ct),
        start_mm=geometry.position_mm(at),
    )


def _named(told: RunCase, note: ModelNote, values: list[int]) -> dict[str, tuple[int, ...]]:
    """Return the values of all labels by name; a value that the model does not know has its number for a name."""
    named = {label.name: tuple(note.labels.get(label.name, ())) for label in told.labels}
    known = {value for of_label in named.values() for value in of_label}
    return {**named, **{f"value {value}": (value,) for value in values if value not in known}}


def _colours(note: ModelNote, labels: Mapping[str, tuple[int, ...]]) -> dict[str, RGB]:
    return {**colours_of(labels), **{name: colour for name, colour in note.colours.items() if name in labels}}


def _percentiles(voxels: npt.NDArray[Any]) -> tuple[float, float]:
    low, high = np.percentile(voxels[:: max(1, len(voxels) // 40), ::4, ::4], (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _note(shape: tuple[int, ...], small: tuple[int, ...], step: float, *, is_ct: bool) -> str:
    """Return in words what of a scan is in a page."""
    sides = " x ".join(map(str, reversed(small)))
    fewer = "all" if math.prod(shape) == math.prod(small) else "fewer than the scan's"
    values = f"{CT_HU[0]:g} to {CT_HU[1]:g} HU in steps of {step:g}" if is_ct else "in 256 steps"
    return f"This viewer has {sides} voxels ({fewer}), {values}. Pictures, volumes and scores are of all voxels."


def _defined(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None and not math.isnan(value)]
