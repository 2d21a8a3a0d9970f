"""What is imported as the client is there."""

import importlib.util

from benchmarks.experiments.start_up import CLIENT_MODULES


def test_the_modules_of_the_client_are_where_the_benchmark_looks():
    assert all(importlib.util.find_spec(name) is not None for name in CLIENT_MODULES)
