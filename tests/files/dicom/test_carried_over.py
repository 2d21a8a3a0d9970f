import pytest
from pydicom.multival import MultiValue

from ctseg.files.dicom.carried_over import valid_text


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("LO", " A  1\0", "A  1"),
        ("LO", "left\r\nright\u2028\\end", "left  right  end"),
        ("LO", "ä" * 65, "ä" * 64),
        ("LO", MultiValue(str, ["one", "two"]), "one two"),
        ("SH", "a study of more than sixteen", "a study of more"),
        ("PN", "Doe^Jane^^Dr.^PhD^more", "Doe^Jane^^Dr.^PhD"),
        ("PN", "=山田^太郎\u3000=", "=山田^太郎\u3000"),
        ("PN", "====", ""),
        ("DA", "20240229", "20240229"),
        ("DA", "20230229", ""),
        ("DA", "00000101", ""),
        ("DA", "2024.02.29", "20240229"),
        ("DA", "29.02.2024", ""),
        ("DA", "20240101-20240102", ""),
        ("DA", MultiValue(str, ["20240101", "20240102"]), ""),
        ("TM", "1015", "1015"),
        ("TM", "10:15:00.5", "101500.5"),
        ("TM", "2515", ""),
        ("AS", "045Y", "045Y"),
        ("AS", "45", ""),
        ("DS", "1e3", "1e3"),
        ("DS", "NaN", ""),
    ],
)
def test_texts_are_kept_where_they_are_valid_and_cut_or_left_out_where_not(vr, value, expected):
    assert valid_text(value, vr) == expected
