"""Whole scans inside Triton: one request is one scan, segmented by the client's own code over in-process calls."""
