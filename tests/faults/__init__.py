"""Faults that take long: processes killed at random moments, disks that fill, links that are lost; ``make faults``."""
