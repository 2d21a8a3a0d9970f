"""How many worker processes nnU-Net starts; imports nothing of it, because it reads this when it is imported."""

import os
from collections.abc import MutableMapping


def limit_worker_processes(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give nnU-Net no more worker processes than there are cores, unless the environment says how many.

    Args:
        environment: Changed in place: ``nnUNet_def_n_proc`` is set where it is not.
    """
    environment.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))
