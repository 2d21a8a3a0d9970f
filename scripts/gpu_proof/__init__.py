"""`make gpu`: proves the product on a machine with an NVIDIA GPU, and rehearses the same on a CPU."""
