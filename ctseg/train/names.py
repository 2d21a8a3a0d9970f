"""The names by which trainers, plans and planners are asked for: ctseg's own, and nnU-Net's defaults."""

import difflib
from collections.abc import Iterable

SWIN_TRAINER = "nnUNetTrainerSwinUNETR"
SWIN_PLANS = "nnUNetSwinUNETRPlans"
SWIN_PLANNER = "nnUNetPlannerSwinUNETR"
STOCK_PLANS = "nnUNetPlans"
DEFAULT_PLANNER = "ExperimentPlanner"


def meant(name: str, names: Iterable[str]) -> str:
    """Return the end of a message that says which name may be meant by one that is unknown; empty: none is near."""
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def default_plans(trainer: str) -> str:
    """Return the plans that a trainer takes unless told."""
    return SWIN_PLANS if trainer == SWIN_TRAINER else STOCK_PLANS
