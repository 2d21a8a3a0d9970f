"""The names by which trainers, plans and planners are asked for: ctseg's own, and nnU-Net's defaults."""

SWIN_TRAINER = "nnUNetTrainerSwinUNETR"
SWIN_PLANS = "nnUNetSwinUNETRPlans"
SWIN_PLANNER = "nnUNetPlannerSwinUNETR"
STOCK_PLANS = "nnUNetPlans"
DEFAULT_PLANNER = "ExperimentPlanner"


def default_plans(trainer: str) -> str:
    """Return the plans that a trainer takes unless told."""
    return SWIN_PLANS if trainer == SWIN_TRAINER else STOCK_PLANS
