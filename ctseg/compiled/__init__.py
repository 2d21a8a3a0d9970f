"""Loads, caches and runs compiled kernels on threads; the kernels lie beside their users."""
