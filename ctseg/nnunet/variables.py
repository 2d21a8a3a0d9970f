"""Environment variables by which nnU-Net finds its folders."""

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
