"""How many processors this process may use."""

import os


def usable_cpus() -> int:
    """Return the processors that this process may run on; all of the machine's where that cannot be told."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
