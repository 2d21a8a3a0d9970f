"""Where trainers of ctseg's own lie, as plain data that training and deployment both read."""

from pathlib import Path

TRAINERS_PACKAGE = "ctseg.train.trainers"
"""The modules in :data:`TRAINERS_FOLDER`, by the name that imports them."""
TRAINERS_FOLDER = Path(__file__).parents[1] / "train" / "trainers"
"""What ``nnUNet_extTrainer`` has to hold so that nnU-Net's own commands find the Swin UNETR trainer."""
