"""Older nnU-Nets in environments of their own: what they train, exported by ctseg and compared."""
