"""What the exit status of a command says."""

DONE = 0
"""All done."""
SOME_FAILED = 1
"""Some cases failed, each named; or a check found problems."""
WRONG_SETUP = 2
"""Wrong usage or setup: nothing was done."""
WENT_AWAY = 3
"""The server, or the output disk, went away for good: work is left; worth trying again. Wins over 1."""
INTERRUPTED = 130
"""Ctrl-C: 128 + 2, as a shell reports it; worth trying again."""
TERMINATED = 143
"""SIGTERM came and the state was saved: 128 + 15; worth trying again."""
