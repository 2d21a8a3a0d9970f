"""A container finishes its whole scans before it is stopped."""

from pathlib import Path

from ctseg.container import entrypoint
from ctseg.container.drain import METRICS_PORT, VIEW, drain, unfinished_scans
from ctseg.serving.whole_scan.stopping import stopping_file
from tests.support.live_triton import free_port


def test_it_waits_until_no_scan_is_left_and_lets_none_begin_meanwhile(tmp_path: Path) -> None:
    counts = iter([3, 1, 0])
    assert drain(tmp_path / "models", 600, lambda: next(counts), pause_s=0) == 0
    assert stopping_file(tmp_path / "models") == tmp_path / "stopping"
    assert (tmp_path / "stopping").is_file()


def test_it_ends_at_its_time_limit_and_says_what_is_left(tmp_path: Path) -> None:
    assert drain(tmp_path / "models", 0, lambda: 2) == 2


def test_it_knows_the_servers_folder_and_port() -> None:
    assert (VIEW, METRICS_PORT) == (entrypoint.VIEW, entrypoint.METRICS_PORT)


def test_a_server_that_has_gone_has_no_scan_left(tmp_path: Path) -> None:
    assert unfinished_scans(free_port()) == 0
