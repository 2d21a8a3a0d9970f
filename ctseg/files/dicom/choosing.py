"""Which of the CT series of an input are taken, by rules that a person can write."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ctseg.files.dicom.series import CtSeries

Rule = Literal["description", "kernel", "slices"]
_SLICES = re.compile(r"(?P<least>\d{1,9})?(?P<range>-)?(?P<most>\d{1,9})?")


@dataclass(frozen=True)
class SeriesRules:
    """What a series has to fit to be taken; all are taken by default.

    Attributes:
        descriptions: Patterns of the series description, of which one has to fit: ``*`` stands for any text, ``?``
            for any character; capitals do not matter.
        kernels: Patterns of the convolution kernel, likewise.
        least_slices: The fewest slices.
        most_slices: The most; None: any number.

    Raises:
        ValueError: No number of slices fits.
    """

    descriptions: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    least_slices: int = 1
    most_slices: int | None = None

    def __post_init__(self) -> None:
        if self.least_slices < 0 or (self.most_slices is not None and self.most_slices < max(1, self.least_slices)):
            raise ValueError(
                f"expected a number of slices, or the least and the most, found {self.least_slices} to "
                f"{self.most_slices}"
            )

    def may_fit(self, description: str) -> bool:
        """Whether a series may be taken of which only the description is known.

        Args:
            description: Empty where it is not known either.
        """
        return not (self.descriptions and description.strip()) or _fits(self.descriptions, (description.strip(),))

    def against(self, series: CtSeries) -> Rule | None:
        """Return the first rule that a series does not fit; None: it is taken."""
        if self.descriptions and not _fits(self.descriptions, (series.description.strip(),)):
            return "description"
        kernel = series.kernel.strip()
        if self.kernels and not _fits(self.kernels, (kernel, *(value.strip() for value in kernel.split("\\")))):
            return "kernel"
        count = len(series.slices)
        if 0 < count < self.least_slices or (self.most_slices is not None and count > self.most_slices):
            return "slices"
        return None


def slices_from_text(text: str) -> tuple[int, int | None]:
    """Return the least and the most slices that a text such as ``50-``, ``50-400``, ``-400`` or ``120`` means.

    Raises:
        ValueError: It means none.
    """
    found = _SLICES.fullmatch(text.strip())
    if found is None or not (found["least"] or found["most"]):
        raise ValueError(f"expected a number of slices such as 50-, 50-400, -400 or 120, found {text!r}")
    least = int(found["least"] or 1)
    most = None if found["most"] is None else int(found["most"])
    return least, most if found["range"] else least


def fits(text: str, pattern: str) -> bool:
    """Whether a text fits a pattern: ``*`` is any text, ``?`` any character, all else itself, in capitals or not."""
    return fnmatch.fnmatchcase(text.casefold(), pattern.casefold().replace("[", "[[]"))


def _fits(patterns: Sequence[str], texts: Sequence[str]) -> bool:
    return any(fits(text, pattern) for pattern in patterns for text in texts)
