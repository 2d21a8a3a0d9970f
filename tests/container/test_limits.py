"""How long a first start may take is one number, wherever it stands."""

import re
from pathlib import Path

from tests.support.container_entries import settings_of

ROOT = Path(__file__).parents[2]
LONGEST_S = 3600


def number(file: str, pattern: str) -> int:
    found = re.findall(pattern, (ROOT / file).read_text())
    assert len(found) == 1, f"{file}: {pattern}"
    return int(found[0])


def test_everything_that_waits_for_a_first_start_waits_as_long() -> None:
    assert settings_of().lock_timeout_s == LONGEST_S
    assert number("Dockerfile.serve", r"--start-period=(\d+)m") * 60 == LONGEST_S
    assert number("scripts/serve.sh", r"START_TIMEOUT_S:-(\d+)") == LONGEST_S
    probe = r"startupProbe:(?:\n(?!.*Probe:).*)*?\n *periodSeconds: (\d+)"
    tries = r"startupProbe:(?:\n(?!.*Probe:).*)*?\n *failureThreshold: (\d+)"
    kubernetes = "docs/examples/kubernetes.yaml"
    assert number(kubernetes, probe) * number(kubernetes, tries) == LONGEST_S


def test_a_build_that_fails_by_itself_is_not_tried_for_ever() -> None:
    assert number("docs/examples/compose.yaml", r"restart: on-failure:(\d+)") == 3


def test_the_examples_give_as_much_shared_memory() -> None:
    sizes = [
        number("scripts/serve.sh", r"SHM_SIZE:-(\d+)g}"),
        number("docs/examples/compose.yaml", r"shm_size: (\d+)gb"),
        number("docs/examples/kubernetes.yaml", r"medium: Memory.*\n *sizeLimit: (\d+)Gi"),
    ]
    assert sizes == [4] * 3


def test_kubernetes_gives_time_for_scans_to_finish_and_then_for_a_stop() -> None:
    kubernetes = "docs/examples/kubernetes.yaml"
    finishing = number(kubernetes, r'"ctseg.container.drain", "(\d+)"')
    stopping = number(kubernetes, r'CTSEG_EXIT_TIMEOUT_S\n *value: "(\d+)"')
    assert number(kubernetes, r"terminationGracePeriodSeconds: (\d+)") > finishing + stopping
