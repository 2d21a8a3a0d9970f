"""Codes of labels: those of a spec, those that a person gives, and those of names that many models use."""

from collections.abc import Mapping
from pathlib import Path

from ctseg.presentation import LabelPresentation


def read_codes(path: Path) -> Mapping[str, LabelPresentation]:
    """Read a file of codes: JSON or CSV, by the name of the label.

    Raises:
        InputError: It cannot be read, or says something that is no code.
    """
    raise NotImplementedError


def coded(
    labels: Mapping[str, tuple[int, ...]],
    presentation: Mapping[str, LabelPresentation],
    given: Mapping[str, LabelPresentation],
) -> tuple[Mapping[str, LabelPresentation], tuple[str, ...]]:
    """Return how every label is called, with a category and a type for each.

    What is given goes before what the spec says, and that before the table of known names. A label without any gets
    a private code with its own name.

    Args:
        labels: Values by name.
        presentation: What the spec says.
        given: What a person says.

    Returns:
        By the name of each label; and the names of those without codes.

    Raises:
        InputError: ``given`` names a label that the model does not have.
    """
    raise NotImplementedError
