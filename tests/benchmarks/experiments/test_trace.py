"""The trace shows what the server did while each case was in which stage."""

import pytest

from benchmarks.experiments.trace import read_server_log, trace_of
from benchmarks.results import Span


def span(row, stage, begin, end):
    return Span(row=row, stage=stage, begin=begin, end=end)


def test_the_server_is_busy_while_any_of_its_instances_computes():
    client = [span("a", "read", 100.0, 101.0), span("a", "network", 101.0, 109.0), span("a", "write", 109.0, 110.0)]
    proof, *server = [
        span("server", "compute", begin, end)
        for begin, end in ((90.0, 91.0), (102.0, 104.0), (103.0, 106.0), (107.0, 108.0))
    ]
    trace = trace_of("model", None, client, [proof, *server], windows=3, client_cpu_s=1.0)
    assert (trace.folder_s, trace.scans) == (10.0, 1)
    assert trace.busy_share == pytest.approx(5.0 / 10.0)
    assert trace.busy_share_between == pytest.approx(5.0 / 6.0)
    assert [(s.row, s.begin) for s in trace.spans][:2] == [("a", 0.0), ("a", 1.0)]


def test_the_server_s_log_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "log"
    path.write_text("1.500000 2.000000\n3.000000 3.250000\n")
    assert [(s.row, s.stage, s.begin, s.end) for s in read_server_log(path)] == [
        ("server", "compute", 1.5, 2.0),
        ("server", "compute", 3.0, 3.25),
    ]
