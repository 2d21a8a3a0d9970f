"""What is old or half-written leaves a model repository, and nothing else does."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.serving.entries import list_models, read_entry
from ctseg.serving.upkeep import remove_leftovers, remove_versions
from tests.support.toy_models import write_toy_entry

WRITER = """
import sys, time
from pathlib import Path
from ctseg.serving import publish
from tests.support.toy_models import write_toy_entry

def stop(folder):
    print("half-written", flush=True)
    time.sleep(120)

publish.bring_to_disk = stop
write_toy_entry(Path(sys.argv[1]), version=2)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_versions_are_removed_with_what_the_configuration_says_of_them(root: Path) -> None:
    for number in (1, 2, 3):
        write_toy_entry(root, version=number)
    remove_versions(root, "toy", [1, 2])
    assert [item.version for item in read_entry(root / "toy").versions] == [3]
    config = (root / "toy" / "config.pbtxt").read_text()
    assert "ctseg_spec.3" in config
    assert not any(f"ctseg_{what}.{number}" in config for what in ("spec", "runtime") for number in (1, 2))
    assert not list(root.parent.rglob(".ctseg-staging*"))
    with pytest.raises(ValueError, match="all that there are"):
        remove_versions(root, "toy", [3])
    write_toy_entry(root, version=4)
    assert [item.version for item in read_entry(root / "toy").versions] == [3, 4]


def test_the_rest_of_a_killed_writer_is_removed(root: Path) -> None:
    write_toy_entry(root)
    rest = root.parent / f".ctseg-staging-{root.name}-killed"
    (rest / "2").mkdir(parents=True)
    remove_leftovers(root)
    assert not rest.exists()
    assert list_models(root) == ["toy"]


def test_a_writer_that_is_told_to_end_cleans_up(root: Path) -> None:
    write_toy_entry(root)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half-written\n"
    assert list(root.parent.rglob(".ctseg-staging*"))
    writer.send_signal(signal.SIGTERM)
    assert writer.wait(60) == 128 + signal.SIGTERM
    writer.stdout.close()
    assert not list(root.parent.rglob(".ctseg-staging*"))
    assert [item.version for item in read_entry(root / "toy").versions] == [1]
