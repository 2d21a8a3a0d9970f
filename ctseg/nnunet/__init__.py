"""What nnU-Net leaves on disk, as plain data."""
