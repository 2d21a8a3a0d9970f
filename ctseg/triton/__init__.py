"""The network over Triton's gRPC protocol: the only room that knows tritonclient."""
