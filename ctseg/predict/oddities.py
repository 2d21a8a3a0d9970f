"""What a person is to know of a segmented case at a glance, in sentences: of its voxels, and of what was found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ctseg.arrays import LabelMap
from ctseg.files.geometry import Geometry, closest_ras_by_itk
from ctseg.files.volume import Volume
from ctseg.numerics.warnings import CutLabel, TrainingIntensities, cut_labels, unusual_volumes, why_no_hu
from ctseg.predict.contract import ScanContract

MOST_NAMED = 8
"""Labels that one sentence names."""

_SIDES = (("inferior", "superior"), ("posterior", "anterior"), ("left", "right"))
"""Of the patient, along (z, y, x) of RAS+, first and last."""


@dataclass(frozen=True)
class Oddity:
    """Something odd.

    Attributes:
        told: In a sentence, with all figures.
        in_short: What a log has of it where many cases have it and few matter, such as labels that a scan cuts; empty:
            it is a warning.
    """

    told: str
    in_short: str = ""


def oddities(
    volume: Volume, labels: LabelMap, volumes_ml: Mapping[str, float], contract: ScanContract
) -> tuple[Oddity, ...]:
    """Return what is odd about a case, what matters most first. It takes a small part of the time of reading the scan.

    Args:
        volume: The scan.
        labels: (z, y, x), what was found in it.
        volumes_ml: Of each label by its name.
        contract: What the model takes and gives.
    """
    return tuple(_oddities(volume, labels, volumes_ml, contract))


def _oddities(
    volume: Volume, labels: LabelMap, volumes_ml: Mapping[str, float], contract: ScanContract
) -> Iterator[Oddity]:
    for channel, said in contract.ct_intensities.items():
        training = TrainingIntensities(said.mean, said.percentile_00_5, said.percentile_99_5)
        if why := why_no_hu(volume.voxels[channel], training):
            yield Oddity(f"channel {contract.channels[channel]}: {why}")
    if not any(volumes_ml.values()):
        yield Oddity("the label map is empty: nothing was found")
        return
    training_ml = {
        name: said.training_volumes_ml
        for name, said in contract.presentation.items()
        if said.training_volumes_ml is not None
    }
    unusual = unusual_volumes(volumes_ml, training_ml)
    if unusual:
        told = [
            f"{name} {_ml(found.volume_ml)} ml ({_ml(found.least_ml)} to {_ml(found.largest_ml)} ml)"
            for name, found in unusual.items()
        ]
        yield Oddity(f"volumes far outside those of the training set: {_listed(told)}")
    circle_of = volume.voxels[min(contract.ct_intensities)] if contract.ct_intensities else None
    if cut := cut_labels(labels, contract.labels, volume.geometry.spacing_mm, voxels=circle_of):
        sides = _sides(volume.geometry)
        told = [f"{name} ({', '.join(_where(label, sides))})" for name, label in cut.items()]
        short = f"the edge of the scan cuts {next(iter(cut)) if len(cut) == 1 else f'{len(cut)} labels'}"
        yield Oddity(f"cut by the edge of the scan: {_listed(told)}", short)


def _sides(geometry: Geometry) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str]]:
    """Return the sides of the patient at the first and the last plane along (z, y, x) of a grid."""
    turned = closest_ras_by_itk(geometry.direction_ras)
    named = {
        axis: sides[::-1] if flipped else sides
        for axis, flipped, sides in zip(turned.axes, turned.flipped, _SIDES, strict=True)
    }
    return (named[0], named[1], named[2])


def _where(label: CutLabel, sides: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for names, areas in zip(sides, label.ends_mm2, strict=True):
        for name, area in zip(names, areas, strict=True):
            if area:
                yield f"{name} {_area(area)}"
    if label.circle_mm2:
        yield f"round field of view {_area(label.circle_mm2)}"


def _area(area_mm2: float) -> str:
    return f"{area_mm2 / 100:,.1f} cm2" if area_mm2 >= 100 else f"{area_mm2:.0f} mm2"


def _ml(volume_ml: float) -> str:
    return f"{volume_ml:,.0f}" if volume_ml >= 100 else f"{volume_ml:.3g}"


def _listed(told: list[str]) -> str:
    more = f", and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    return ", ".join(told[:MOST_NAMED]) + more
