"""Training: nnU-Net, MONAI and torch; imports the client layer, never the reverse."""
