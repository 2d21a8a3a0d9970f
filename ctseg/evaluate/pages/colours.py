"""Which colour a label has on pages and in pictures."""

import colorsys
from collections.abc import Mapping

from ctseg.presentation import LabelPresentation

RGB = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

_FIRST: tuple[RGB, ...] = (
    (229, 83, 75), (78, 161, 237), (244, 196, 66), (86, 190, 120), (178, 120, 222),
    (240, 140, 60), (70, 198, 200), (236, 120, 170), (160, 190, 70), (150, 130, 240),
)  # fmt: skip
"""Told apart over grey CT, and from each other; further ones go round the circle of hues by the golden angle."""


def colours_of(
    labels: Mapping[str, tuple[int, ...]], presentation: Mapping[str, LabelPresentation] | None = None
) -> Mapping[str, RGB]:
    """Return a colour for each label: the model's own where it names one, else one of its own by its place.

    Args:
        labels: Values in a label map by the label's name, in order.
        presentation: What the model says of labels.
    """
    own = {name: said.colour for name, said in (presentation or {}).items() if said.colour is not None}
    return {name: own.get(name) or _colour(place) for place, name in enumerate(labels)}


def colours_of_values(labels: Mapping[str, tuple[int, ...]], colours: Mapping[str, RGB]) -> Mapping[int, RGB]:
    """Return the colour of each value: that of the smallest region which it belongs to, among equals of the last.

    Args:
        labels: Values in a label map by the label's name.
        colours: By the label's name.
    """
    by_size = sorted(labels.items(), key=lambda label: -len(label[1]))
    return {value: colours[name] for name, values in by_size for value in values}


def lighter(colour: RGB) -> RGB:
    """Return a colour nearer to white, in which an outline is seen on a veil of the same label."""
    red, green, blue = (round((part + 255) / 2) for part in colour)
    return red, green, blue


def css(colour: RGB) -> str:
    """Return a colour as style sheets write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _colour(place: int) -> RGB:
    if place < len(_FIRST):
        return _FIRST[place]
    hue = (place * 0.381966) % 1
    lightness, saturation = ((0.62, 0.75), (0.48, 0.7), (0.74, 0.8))[place % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)
