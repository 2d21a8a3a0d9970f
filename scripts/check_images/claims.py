"""What is claimed, said as it is found."""

import time


class ClaimError(Exception):
    """Something is not as it should be."""


def claim(text: str, holds: bool, found: object = "") -> None:
    """Print a claim that holds; stop at one that does not."""
    if not holds:
        raise ClaimError(f"{text}; found: {found}")
    print(f"  ok  {text}", flush=True)


def step(text: str) -> None:
    """Print what begins now."""
    print(f"[{time.monotonic() - START_S:5.0f} s] {text}", flush=True)


START_S = time.monotonic()
