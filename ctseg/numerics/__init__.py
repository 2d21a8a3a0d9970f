"""What happens to voxels before and after the network: nnU-Net's own arithmetic, compiled, slab by slab."""

KERNEL_MODULES = tuple(f"ctseg.numerics.{name}_kernels" for name in ("resample", "blend", "restore"))
"""What a folder run needs compiled, in the order of its need."""
RECIPE_KERNEL_MODULES = tuple(f"ctseg.numerics.{name}_kernels" for name in ("label", "ensemble"))
"""What cascades and ensembles need compiled besides."""
AGREEMENT_KERNEL_MODULES = ("ctseg.numerics.agreement_kernels",)
"""What the agreement of folds needs compiled besides."""
