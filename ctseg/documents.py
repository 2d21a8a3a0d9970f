"""The base of every JSON document that ctseg writes and reads again."""

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A frozen document in which an unknown field, NaN or infinity is an error, never a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
