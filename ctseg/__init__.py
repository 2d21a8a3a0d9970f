"""CT segmentation from data to production: nnU-Net trained, exported, served by Triton, and used."""

__version__ = "0.1.0"
