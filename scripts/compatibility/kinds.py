"""Which nnU-Nets, and which kinds of model each of them trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.compatibility.data import FOLDS

OWN_TRAINER = "nnUNetTrainerOwnNetwork"
"""A trainer that stands in no nnU-Net and builds its network by its own code."""
PLANS = "nnUNetPlans"
BOTH_FOLDS = tuple(range(FOLDS))


@dataclass(frozen=True)
class NnUNet:
    """A release of nnU-Net, and what was installed with it in its day.

    Attributes:
        version: On the package index.
        companions: Requirements that replace what ctseg's environment has.
        residual_planner: Its planner of residual encoder U-Nets.
        residual_plans: Name of that planner's plans.
        memory_gb: Graphics memory for its planners, which gives patches of 16 x 40 x 32 voxels or so.
        own_network: The form in which its trainers are asked for a network: see ``own_network.py``.
    """

    version: str
    companions: tuple[str, ...] = ()
    residual_planner: str = "nnUNetPlannerResEncM"
    residual_plans: str = "nnUNetResEncUNetMPlans"
    own_network: str = "arguments"
    memory_gb: float = 0.025


NNUNETS = (
    NnUNet(
        "2.2.1",
        ("dynamic-network-architectures==0.2", "acvl-utils==0.2"),
        residual_planner="ResEncUNetPlanner",
        residual_plans="nnUNetResEncUNetPlans",
        own_network="dataset",
        memory_gb=0.07,  # its planner takes no account of the number of features
    ),
    NnUNet("2.4.2", ("dynamic-network-architectures==0.3.1", "acvl-utils==0.2")),
    NnUNet("2.6.4"),
    NnUNet("2.8.1", own_network="managers"),
)


@dataclass(frozen=True)
class Training:
    """A configuration that is trained.

    Attributes:
        configuration: Of the plans.
        trainer: Name of the class.
        plans: Name of the plans.
        folds: Which.
        validated: Whether its folds are validated, as ensembles, second stages and archives need it.
        first: The first stage, where this is the second one of a cascade.
    """

    configuration: str = "3d_fullres"
    trainer: str = "nnUNetTrainer"
    plans: str = PLANS
    folds: tuple[int, ...] = (0,)
    validated: bool = False
    first: "Training | None" = None

    @property
    def folder_name(self) -> str:
        """Of the trained model, as nnU-Net names it."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def stages(self) -> "tuple[Training, ...]":
        """This, after its first stage where it has one."""
        return (self,) if self.first is None else (self.first, self)


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        name: For the page.
        members: One, or those of an ensemble.
        source: ``folder`` (nnU-Net's results), ``archive`` (what ``nnUNetv2_export_model_to_zip`` writes) or
            ``totalsegmentator`` (a folder as TotalSegmentator downloads its models).
        trusted: Whether the export runs code that came with the model.
        refused: Why nothing of it can be exported, in the words that have to come.
    """

    name: str
    members: tuple[Training, ...]
    source: str = "folder"
    trusted: bool = False
    refused: str | None = None

    @property
    def key(self) -> str:
        """A name for files and models."""
        plain = "".join(letter if letter.isalnum() else " " for letter in self.name.lower())
        return "_".join(plain.split())

    @property
    def trained_by(self) -> str:
        """Trainer and plans, the same for all, and the configurations."""
        first = self.members[0]
        configurations = ", ".join(training.configuration for training in self.trainings)
        return f"{first.trainer}, {first.plans}: {configurations}"

    @property
    def trainings(self) -> Iterator[Training]:
        """All that has to be trained, a first stage before its second."""
        for member in self.members:
            yield from member.stages


FULL = Training(folds=BOTH_FOLDS, validated=True)
FLAT = Training("2d", folds=BOTH_FOLDS, validated=True)
LOW = Training("3d_lowres", folds=BOTH_FOLDS, validated=True)
SECOND = Training("3d_cascade_fullres", folds=BOTH_FOLDS, validated=True, first=LOW)

NOT_BUILT = "was written for nnU-Net 2.0 to 2.2"


def kinds_of(nnunet: NnUNet) -> tuple[Kind, ...]:
    """Return what a release trains."""
    own = Training(trainer=OWN_TRAINER)
    refused = NOT_BUILT if nnunet.own_network == "dataset" else None
    return (
        Kind("U-Net, 3d_fullres", (FULL,)),
        Kind("U-Net, 2d", (FLAT,)),
        Kind("residual encoder U-Net", (Training(plans=nnunet.residual_plans),)),
        Kind("batch normalisation", (Training(trainer="nnUNetTrainerBN"),)),
        Kind("no mirroring", (Training(trainer="nnUNetTrainerNoMirroring"),)),
        Kind("no deep supervision", (Training(trainer="nnUNetTrainerNoDeepSupervision"),)),
        Kind(
            "TotalSegmentator's trainer and folders",
            (Training(trainer="nnUNetTrainer_4000epochs_NoMirroring"),),
            source="totalsegmentator",
        ),
        Kind("cascade", (SECOND,)),
        Kind("ensemble of 2d and 3d_fullres", (FLAT, FULL)),
        Kind("zip of a model", (FULL,), source="archive"),
        Kind("zip of a cascade", (SECOND,), source="archive"),
        Kind("zip of an ensemble", (FLAT, FULL), source="archive"),
        Kind("trainer with its own network", (own,), trusted=True, refused=refused),
    )


def folder_of(results: Path, dataset: str, training: Training) -> Path:
    """Return where nnU-Net leaves a trained model."""
    return results / dataset / training.folder_name
