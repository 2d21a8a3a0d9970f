"""Too few threads are told in one line, before anything needs them."""

import sys

import pytest

from ctseg.serving.threads import require_threads, threads_of_run
from tests.support.unprivileged import error_of

IMPORT = "import resource\nfrom ctseg.serving.threads import require_threads"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as processes")
def test_a_limit_of_processes_is_told_with_what_there_is() -> None:
    limit = "resource.setrlimit(resource.RLIMIT_NPROC, (20, 20))"
    told = error_of(IMPORT, f"{limit}\nrequire_threads(40)")
    assert told.startswith("ctseg.errors.SetupError: this run needs 40 threads at least, and only ")
    assert "ulimit -u" in told


def test_enough_threads_are_no_error_and_none_stays() -> None:
    require_threads(threads_of_run(starts_server=True))
    assert threads_of_run(starts_server=False) < threads_of_run(starts_server=True)
