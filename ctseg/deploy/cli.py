"""Commands of the deployment layer."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``export``, ``build``, ``serve`` and ``doctor``."""
