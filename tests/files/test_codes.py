"""Codes of labels: files of them, the table of known names, and names that nobody has a code for."""

import csv
import json
from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from ctseg.errors import InputError
from ctseg.files.codes import coded, read_codes
from ctseg.presentation import Code, LabelPresentation

KNOWN = Path(__file__).parents[2] / "ctseg" / "files" / "known_codes.csv"
LIVER = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
ANATOMICAL = {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"}
LEFT = {"value": "7771000", "scheme": "SCT", "meaning": "Left"}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_known_names_have_codes_that_are_some():
    known = read_codes(KNOWN)  # check digits of all of them are looked at
    assert len(known) == 170
    meanings: dict[str, set[str]] = {}
    for name, said in known.items():
        assert said.category is not None, name
        assert said.type is not None, name
        assert said.colour is not None, name
        for code in (said.category, said.type, said.modifier, said.region, said.region_modifier):
            if code is not None:
                assert code.scheme == "SCT"
                meanings.setdefault(code.value, set()).add(code.meaning)
    assert [value for value, said in meanings.items() if len(said) > 1] == []


def test_no_known_name_has_a_side_of_its_own_and_another_beside_it():
    """As the left subclavian artery had the code of the right one in TotalSegmentator's table."""
    sides: dict[str, set[str]] = {}
    for codes in concepts["SCT"].values():
        for value, (meaning, _) in codes.items():
            sides.setdefault(value, set()).update({"left", "right"} & set(meaning.lower().split()))
    for name, said in read_codes(KNOWN).items():
        if said.modifier is not None and said.modifier.meaning in ("Left", "Right"):
            assert not sides.get(said.type.value), name
            assert said.modifier.meaning.lower() in name


def test_names_that_differ_in_more_than_the_side_have_codes_that_differ():
    names: dict[tuple[object, ...], set[str]] = {}
    for name, said in read_codes(KNOWN).items():
        key = (said.type, said.modifier, said.region, said.region_modifier)
        names.setdefault(key, set()).add(name)
    assert [found for found in names.values() if len(found) > 1] == [{"phalanges_feet", "phalanges_hand"}]


def test_json_and_csv_say_the_same(tmp_path: Path):
    said = {"category": ANATOMICAL, "type": LIVER, "modifier": LEFT, "colour": [1, 2, 3], "display_name": "Leber"}
    by_json = read_codes(written(tmp_path / "codes.json", json.dumps({"liver": said})))
    columns = {"Structure": "liver", "DicomRGBColor": "1, 2, 3", "DisplayName": "Leber"}
    names = ("SegmentedPropertyCategory", "SegmentedPropertyType", "SegmentedPropertyTypeModifier")
    for name, code in zip(names, (ANATOMICAL, LIVER, LEFT), strict=True):
        columns[f"{name}CodeSequence.CodeValue"] = code["value"]
        columns[f"{name}CodeSequence.CodingSchemeDesignator"] = code["scheme"]
        columns[f"{name}CodeSequence.CodeMeaning"] = code["meaning"]
    for delimiter in ",;":
        path = tmp_path / "codes.csv"
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            rows = csv.DictWriter(file, columns, delimiter=delimiter)
            rows.writeheader()
            rows.writerow(columns)
        assert read_codes(path) == by_json == {"liver": LabelPresentation.model_validate(said)}


HEADER = (
    "Structure,SegmentedPropertyTypeCodeSequence.CodeValue,SegmentedPropertyTypeCodeSequence.CodingSchemeDesignator"
)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("codes.txt", "", "expected codes in a file that ends in .json or .csv"),
        ("codes.json", "", "the codes are not JSON"),
        ("codes.json", "[]", "expected a JSON object with the names of labels, found list"),
        ("codes.json", "{}", "expected at least one label"),
        ("codes.json", '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}", "the codes are not JSON"),
        ("codes.json", '{"a": {}, "a": {}}', "a: a stands there twice"),
        ("codes.json", '{"a": 1}', "a: label: Input should be a valid dictionary"),
        ("codes.json", '{"a": {"color": [1, 2, 3]}}', "a: color: Extra inputs are not permitted"),
        ("codes.json", json.dumps({"a": {"type": LIVER}}), "a: type needs category beside it"),
        ("codes.json", json.dumps({"a": {"region_modifier": LEFT}}), "a: region_modifier needs region beside it"),
        (
            "codes.json",
            json.dumps({"a": {"category": ANATOMICAL, "type": LIVER | {"value": "10200005"}}}),
            "a: type: 10200005 is no code of SNOMED CT: a digit is wrong or missing",
        ),
        (
            "codes.json",
            json.dumps({"a": {"category": ANATOMICAL, "type": LIVER | {"meaning": "a\\b"}}}),
            "a: type: expected no backslash",
        ),
        ("codes.csv", "", "expected a column Structure"),
        ("codes.csv", "Structure,Colour\nliver,1", "columns Colour: no such thing is said of a label"),
        ("codes.csv", "Structure,DisplayName\nliver", "row 2: expected 2 columns"),
        ("codes.csv", "Structure,DisplayName\nliver,a,b", "row 2: expected 2 columns"),
        ("codes.csv", "Structure\nliver\nliver\n", "row 3: liver stands there twice"),
        ("codes.csv", "Structure,DisplayName\n,Leber", "row 2: expected the name of a label"),
        ("codes.csv", "Structure,DicomRGBColor\nliver,\"1,2,300\"", "row 2: colour: expected red, green and blue"),
        ("codes.csv", HEADER + "\nliver,10200004,SCT", "row 2: type.meaning: String should have at least 1 character"),
    ],
)  # fmt: skip
def test_what_is_no_code_is_told_with_its_place(tmp_path: Path, name: str, text: str, told: str):
    path = written(tmp_path / name, text)
    with pytest.raises(InputError) as error:
        read_codes(path)
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_codes(tmp_path / "codes.json")
    (tmp_path / "latin.csv").write_bytes("Structure\nNiere groß\n".encode("latin-1"))
    with pytest.raises(InputError, match="expected UTF-8"):
        read_codes(tmp_path / "latin.csv")


def test_what_is_given_goes_before_the_spec_and_that_before_the_table():
    other = {
        part: LabelPresentation(
            category=Code.model_validate(ANATOMICAL),
            type=Code(value=part, scheme="99X", meaning=part),
            colour=(9, 9, 9),
        )
        for part in ("given", "spec")
    }
    labels = {"liver": (1,), "spleen": (2,), "kidney left": (3,), "aorta": (4,)}
    found, uncoded = coded(
        labels,
        {"liver": other["spec"], "spleen": other["spec"], "kidney left": LabelPresentation(display_name="Niere")},
        {"liver": other["given"], "aorta": LabelPresentation(colour=(1, 2, 3))},
    )
    assert list(found) == list(labels)
    assert (found["liver"].type.value, found["spleen"].type.value) == ("given", "spec")
    kidney = found["kidney left"]
    assert (kidney.display_name, kidney.type.meaning, kidney.modifier.meaning) == ("Niere", "Kidney", "Left")
    assert (found["aorta"].type.meaning, found["aorta"].colour) == ("Aorta", (1, 2, 3))
    assert uncoded == ()


def test_labels_without_codes_get_private_ones_with_their_names():
    names = ("nodule", "a label with a very long name", "a label with a very long name too", "Läsion")
    found, uncoded = coded(dict.fromkeys(names, (1,)), {}, {})
    assert uncoded == names
    types = [found[name].type for name in names]
    assert [code.meaning for code in types] == list(names)
    assert {code.scheme for code in types} == {"99CTSEG"}
    assert types[0].value == "nodule"
    assert len({code.value for code in types}) == len(names)
    assert all(len(code.value) <= 16 and code.value.isascii() for code in types)
    assert all(found[name].category.value == "85756007" for name in names)


def test_codes_of_a_label_that_is_not_there_are_refused():
    with pytest.raises(
        InputError, match=r"given for lever, which the model does not have; it has liver, spleen"
    ) as error:
        coded({"liver": (1,), "spleen": (2,)}, {}, {"lever": LabelPresentation()})
    assert error.value.settings == ("codes",)
