"""What happens to voxels before and after the network: nnU-Net's own arithmetic, compiled, slab by slab."""
