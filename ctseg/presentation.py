"""How people and other systems call what a label map shows; no label depends on it."""

from pydantic import Field, field_validator

from ctseg.documents import Document


class Code(Document):
    """A term of a coding scheme such as SNOMED CT, as DICOM writes it.

    Attributes:
        value: The code.
        scheme: Its coding scheme designator, such as ``SCT``.
        meaning: In words.
    """

    value: str = Field(min_length=1, max_length=64)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class LabelPresentation(Document):
    """How people and other systems call a label.

    Attributes:
        display_name: For people.
        category: DICOM's segmented property category.
        type: DICOM's segmented property type.
        modifier: Of the type, such as its side.
        region: Anatomic region.
        region_modifier: Of the region.
        colour: Red, green, blue, 0 to 255.
        training_volumes_ml: Least, median and largest volume in the training set.
    """

    display_name: str = ""
    category: Code | None = None
    type: Code | None = None
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None
    colour: tuple[int, int, int] | None = None
    training_volumes_ml: tuple[float, float, float] | None = None

    @field_validator("colour")
    @classmethod
    def _is_rgb(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not all(0 <= part <= 255 for part in value):
            raise ValueError(f"expected red, green and blue from 0 to 255, found {value}")
        return value
