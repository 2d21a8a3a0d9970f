"""Names of files as people and JSON see them."""

import pytest

from ctseg.files.identity import printable


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("s0123", "s0123"), ("Müller 山田\u3000太郎", "Müller 山田\u3000太郎"), ("a\udcfcb", r"a\xfcb"),
        ("a\nb\r\t\x1b[31mc\x7f\x9b", r"a\nb\r\t\x1b[31mc\x7f\x9b"),
        ("a\u202egnp.b\u2066\u2028", r"a\u202egnp.b\u2066\u2028"),
    ],
)  # fmt: skip
def test_names_are_told_on_one_line_and_move_no_cursor(name: str, told: str) -> None:
    assert printable(name) == told
