"""Lines over axes as drawings in a page: courses of trainings, spreads of intensities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_RIGHT, _TOP, _BOTTOM = 10, 8, 32
_FEW = 30


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: What the legend calls it.
        points: (x, y), in order of x; where y is not finite, the line has a gap.
        colour: As style sheets write it.
        dashed: Whether it is drawn so.
        filled: Whether the area below it is.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False
    filled: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    x_name: str,
    y_range: tuple[float, float] | None = None,
    y_ticks: bool = True,
    size: tuple[int, int] = (420, 180),
) -> "Markup":
    """Return lines over axes as inline SVG, with a legend; a dash where no point is finite.

    Few points are marked, so that one alone is seen, and each says its numbers when pointed at.

    Args:
        lines: To be drawn, the last one on top.
        x_name: Below the axis.
        y_range: Of the axis; None: that of the points, and a little more.
        y_ticks: Whether the vertical axis has numbers.
        size: Width and height of the drawing, in the units of its view box.
    """
    from markupsafe import Markup

    finite = [(x, y) for line in lines for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return Markup("<span class=muted>–</span>")
    width, height = size
    left = 46 if y_ticks else 10
    x_low, x_high = _widened(min(x for x, _ in finite), max(x for x, _ in finite), 0.0)
    y_low, y_high = y_range or _widened(min(y for _, y in finite), max(y for _, y in finite), 0.05)

    def at(x: float, y: float) -> tuple[float, float]:
        y = min(y_high, max(y_low, y))
        return (
            left + (x - x_low) / (x_high - x_low) * (width - left - _RIGHT),
            height - _BOTTOM - (y - y_low) / (y_high - y_low) * (height - _TOP - _BOTTOM),
        )

    drawn = [
        Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            left, height - _BOTTOM, width - _RIGHT, height - _BOTTOM
        )
    ]
    whole = all(float(x).is_integer() for x, _ in finite)
    for tick in ticks(x_low, x_high, whole=whole):
        drawn.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
                at(tick, y_low)[0], height - _BOTTOM + 14, tick
            )
        )
    for tick in ticks(y_low, y_high, count=5) if y_ticks else ():
        level = at(x_low, tick)[1]
        drawn.append(
            Markup(
                '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
                '<text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>'
            ).format(left, level, width - _RIGHT, level, left - 6, level + 4, tick)
        )
    drawn.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(width - _RIGHT, height - 4, x_name))
    for line in lines:
        for piece in _pieces(line.points):
            places = [at(x, y) for x, y in piece]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            if line.filled:
                ends = f"{places[-1][0]:.1f},{height - _BOTTOM} {places[0][0]:.1f},{height - _BOTTOM}"
                drawn.append(
                    Markup('<polygon points="{} {}" fill="{}" fill-opacity="0.3"/>').format(path, ends, line.colour)
                )
            drawn.append(
                Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="1.6"{}/>').format(
                    path, line.colour, Markup(' stroke-dasharray="5 3"') if line.dashed else ""
                )
            )
            if len(line.points) <= _FEW:
                drawn += [
                    Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"><title>{}: {:g} at {:g}</title></circle>')
                    .format(*place, line.colour, line.name, point[1], point[0])
                    for place, point in zip(places, piece, strict=True)
                ]  # fmt: skip
    legend = Markup("").join(
        Markup('<span><i style="background: {}"></i>{}</span>').format(line.colour, line.name) for line in lines
    )
    return Markup(
        '<div class="chart"><svg viewBox="0 0 {} {}" role="img">{}</svg><div class="legend">{}</div></div>'
    ).format(width, height, Markup("").join(drawn), legend)


def ticks(low: float, high: float, *, count: int = 6, whole: bool = False) -> tuple[float, ...]:
    """Return round numbers between two others, about ``count`` of them.

    Args:
        low: The least that may be one.
        high: The most.
        count: How many there should be.
        whole: Only whole numbers.
    """
    rough = (high - low) / max(1, count - 1) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(place * step, 12) for place in range(first, last + 1))


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        around = abs(low) * 0.1 or 0.5
        return low - around, high + around
    return low - share * (high - low), high + share * (high - low)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Return the runs of points that are finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]
