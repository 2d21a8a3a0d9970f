"""Deployment: export, precision, parity, TensorRT plans, Triton's model repository and servers."""
