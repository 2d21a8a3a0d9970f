"""Commands of the client layer."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``predict`` and ``benchmark``."""
