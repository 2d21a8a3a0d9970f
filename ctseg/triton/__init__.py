"""The network over Triton: the only room that knows tritonclient."""
