"""Commands of the training layer."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``dataset``, ``plan``, ``train``, ``find-best`` and ``results``."""
