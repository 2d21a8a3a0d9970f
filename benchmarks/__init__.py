"""ctseg beside nnU-Net on one machine: whole commands, single functions, and the floor that the network sets."""
