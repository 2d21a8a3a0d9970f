"""The container's log: one line for each thing, on standard error."""

import logging


def log_to_standard_error() -> None:
    """Let what ctseg logs appear in the container's log, each line beginning with ``ctseg:``."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ctseg: %(message)s"))
    logger = logging.getLogger("ctseg")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
