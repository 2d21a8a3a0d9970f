"""What all pages share: what is from outside is escaped; numbers, histograms and colours."""

import json
import math

import pytest

from ctseg.evaluate.pages.colours import colours_of, colours_of_values
from ctseg.evaluate.pages.rendering import histogram, json_for_script, number, render
from ctseg.presentation import LabelPresentation

HOSTILE = "</script><script>alert(1)</script>\u2028&'\""


def test_what_is_put_into_a_page_is_escaped():
    page = render("base.html.j2", title=HOSTILE)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_each_page_has_its_own_word_by_which_its_scripts_run():
    first, second = (render("base.html.j2", title="x").partition("'nonce-")[2][:24] for _ in range(2))
    assert first != second


def test_json_in_a_script_ends_neither_the_script_nor_a_line():
    written = json_for_script({HOSTILE: [HOSTILE, 1.5]})
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == {HOSTILE: [HOSTILE, 1.5]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.91234, "0.912"), (12.345, "12.3"), (1234.5, "1234"), (0.0012345, "0.00123"), (None, "–"),
     (math.nan, "–"), (math.inf, "∞"), (100.0, "100"), (20.0, "20"), (-2.5, "-2.5")],
)  # fmt: skip
def test_numbers_have_three_digits_that_count(value, text):
    assert number(value) == text


def test_a_histogram_counts_every_value_once_and_says_what_is_not_defined():
    drawn = histogram([0.0, 1.0, 1.0, 10.0, math.nan], "ml")
    assert drawn.count("<rect") == 2
    assert "0 to 2 ml: 3<" in drawn
    assert "8 to 10 ml: 1<" in drawn
    assert "1 not defined" in drawn
    assert "–" in histogram([])
    same = histogram([3.0, 3.0], "ml")
    assert same.count("<rect") == 1
    assert "<title>3 ml: 2</title>" in same


def test_a_colour_is_the_models_own_else_one_that_no_other_label_has():
    labels = {f"l{value}": (value,) for value in range(1, 119)}
    colours = colours_of(labels, {"l2": LabelPresentation(colour=(1, 2, 3)), "l3": LabelPresentation()})
    assert colours["l2"] == (1, 2, 3)
    assert len(set(colours.values())) == 118


def test_a_value_of_several_regions_has_the_colour_of_the_smallest():
    labels = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    colours = {"whole": (1, 1, 1), "core": (2, 2, 2), "enhancing": (3, 3, 3)}
    assert colours_of_values(labels, colours) == {1: (1, 1, 1), 2: (2, 2, 2), 3: (3, 3, 3)}
