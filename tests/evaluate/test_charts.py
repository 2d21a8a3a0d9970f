"""Lines over axes: where points lie, that one alone is seen, and that names are text."""

import math
import re

from ctseg.evaluate.pages.charts import Line, line_chart, ticks


def places(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]


def test_one_point_alone_is_seen_in_the_middle_with_its_number() -> None:
    svg = str(line_chart([Line("loss", [(1.0, 0.75)], "#123456")], x_name="epoch"))
    assert places(svg) == [(228.0, 78.0)]  # of 46 to 410 and 148 to 8
    assert "<title>loss: 0.75 at 1</title>" in svg


def test_points_lie_by_their_numbers_and_nan_is_a_gap() -> None:
    points = [(1.0, 0.0), (2.0, 1.0), (3.0, math.nan), (4.0, 0.5), (5.0, 0.25)]
    svg = str(line_chart([Line("dice", points, "#123456")], x_name="epoch", y_range=(0.0, 1.0)))
    assert places(svg) == [(46.0, 148.0), (137.0, 8.0), (319.0, 78.0), (410.0, 113.0)]
    assert re.findall(r'<polyline points="([^"]*)"', svg) == ["46.0,148.0 137.0,8.0", "319.0,78.0 410.0,113.0"]


def test_what_lies_outside_the_axis_is_drawn_at_its_end() -> None:
    svg = str(line_chart([Line("dice", [(0.0, -3.0), (1.0, 7.0)], "#123456")], x_name="", y_range=(0.0, 1.0)))
    assert places(svg) == [(46.0, 148.0), (410.0, 8.0)]


def test_many_points_have_no_marks() -> None:
    points = [(float(epoch), 0.5) for epoch in range(31)]
    assert places(str(line_chart([Line("loss", points, "#123456")], x_name="epoch"))) == []


def test_nothing_to_draw_is_a_dash() -> None:
    assert "<svg" not in str(line_chart([Line("loss", [(1.0, math.nan)], "#123456")], x_name="epoch"))


def test_names_are_text() -> None:
    svg = str(line_chart([Line("<script>", [(1.0, 1.0)], '"><b>')], x_name="<i>"))
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert svg.count("&lt;script&gt;") == 2


def test_ticks_are_round_numbers() -> None:
    assert ticks(0.0, 1.0, count=5) == (0.0, 0.5, 1.0)
    assert ticks(-0.93, 0.4, count=6) == (-0.5, 0.0)
    assert ticks(1.0, 3.0, whole=True) == (1.0, 2.0, 3.0)
    assert ticks(1.0, 1000.0) == (200.0, 400.0, 600.0, 800.0, 1000.0)
