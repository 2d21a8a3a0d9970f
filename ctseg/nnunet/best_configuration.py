"""``best.json``: which trained models ``ctseg find-best`` chose, for ``ctseg export --from``; no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ctseg.documents import Document, told_by
from ctseg.errors import SpecError
from ctseg.model_spec import KeepLargest


class BestMember(Document):
    """One trained model, by the three names that make its folder ``trainer__plans__configuration``."""

    trainer: str = Field(min_length=1)
    plans: str = Field(min_length=1)
    configuration: str = Field(min_length=1)
    previous_stage: str = ""
    """Configuration of the first stage, where this is the second one of a cascade; it is exported, too."""
    dice: float | None = None
    """Mean foreground Dice of the cross-validation, before post-processing."""

    @property
    def folder_name(self) -> str:
        """Name of the folder under ``nnUNet_results/DatasetXXX_Name``."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"


class BestConfiguration(Document):
    """The best configuration of a data set: one model, or an ensemble of several, in the order of their mean.

    ``postprocessing`` is the winner's, of an ensemble that on merged labels.
    """

    schema_version: Literal[2] = 2
    dataset: str = Field(pattern=r"^Dataset\d{3}_.+$")
    members: tuple[BestMember, ...] = Field(min_length=1)
    folds: tuple[int, ...] = Field(min_length=1)
    postprocessing: tuple[KeepLargest, ...] = ()
    dice: float | None = None
    """Mean foreground Dice of the winner in the cross-validation, before post-processing."""
    dice_postprocessed: float | None = None
    """The same after ``postprocessing``."""

    @property
    def is_ensemble(self) -> bool:
        """Whether an ensemble of configurations won."""
        return len(self.members) > 1

    @classmethod
    def read(cls, path: Path) -> "BestConfiguration":
        """Read and check a ``best.json``.

        Raises:
            SpecError: The file is missing, not JSON, of another schema version, or has unknown or
                missing fields; all problems are told at once.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror}): run `ctseg find-best` first") from error
        except ValidationError as error:
            raise SpecError(f"{path}: {told_by(error, whole='file')}: run `ctseg find-best` again") from error
