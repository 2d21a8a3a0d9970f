"""Writers take turns, also where the file system refuses flock."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from ctseg.container.versions import may_be_served, remove_superseded
from ctseg.errors import SetupError
from ctseg.files.locking import acquired, flock_serves, lock_of, why_flock_fails
from ctseg.serving import writing as writing_module
from ctseg.serving.entries import read_entry
from ctseg.serving.writing import writing
from tests.support.live_triton import wait_for
from tests.support.refused_flock import output_of, started
from tests.support.toy_models import write_toy_entry

COUNT = """
import sys, time
from pathlib import Path
from ctseg.serving.writing import writing
repository = Path(sys.argv[1])
counter = repository / "counter"
for _ in range(15):
    with writing(repository, "toy"):
        found = int(counter.read_text()) if counter.exists() else 0
        time.sleep(0.01)
        counter.write_text(str(found + 1))
"""

PUBLISH = """
import sys
from pathlib import Path
from tests.support.toy_models import write_toy_entry
write_toy_entry(Path(sys.argv[1]), version=int(sys.argv[2]))
"""

HOLD = """
import sys, time
from pathlib import Path
from ctseg.serving.writing import writing
with writing(Path(sys.argv[1]), "toy"):
    Path(sys.argv[2]).touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("refusals", [(None, None), (errno.ENOLCK,) * 3, (errno.ENOSYS, errno.EOPNOTSUPP)])
def test_writers_never_mix_whether_or_not_there_is_flock(tmp_path: Path, refusals: tuple[int | None, ...]) -> None:
    for process in [started(COUNT, tmp_path / "r", refusal=refusal) for refusal in refusals]:
        output_of(process)
    assert (tmp_path / "r" / "counter").read_text() == str(15 * len(refusals))
    assert not list((tmp_path / "r").glob("*.held"))


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_an_entry_is_published_and_the_refusal_told_in_a_note(tmp_path: Path, refusal: int) -> None:
    process = started(PUBLISH, tmp_path / "r", 1, refusal=refusal)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert f"flock does not serve here ({errno.errorcode[refusal]}" in told
    assert read_entry(tmp_path / "r" / "toy").newest.version == 1
    assert errno.errorcode[refusal] in (tmp_path / "r" / ".ctseg.no-flock").read_text()
    assert not list((tmp_path / "r").glob("*.held"))


def test_a_writer_with_flock_waits_for_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing_module, "_LOCK_TIMEOUT_S", 0.3)
    holder = started(HOLD, tmp_path / "r", tmp_path / "held", refusal=errno.ENOLCK)
    try:
        wait_for((tmp_path / "held").exists)
        words = rf"toy: process {holder.pid} on host .* \(if it has ended, remove .*lock.held\) has held .* for 0 s"
        with pytest.raises(SetupError, match=words), writing(tmp_path / "r", "toy"):
            pytest.fail("two writers at once")
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=120)
        assert (tmp_path / "r" / ".ctseg.lock.held").exists()  # nobody has tidied up
        monkeypatch.setattr(writing_module, "_LOCK_TIMEOUT_S", 60.0)
        with writing(tmp_path / "r", "toy"):  # and yet the next one goes on
            pass
    finally:
        holder.kill()
        holder.communicate(timeout=120)


def test_a_writer_that_waited_for_flock_takes_the_file_if_the_note_has_come(tmp_path: Path) -> None:
    def taken() -> str:
        lock = acquired(tmp_path / "lock", timeout_s=60)
        lock.release()
        return lock.lock_file

    first = acquired(tmp_path / "lock", timeout_s=0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(taken)
        assert not wait([waiting], timeout=0.5).done
        (tmp_path / ".ctseg.no-flock").touch()  # another host, that flock is refused to
        other = acquired(tmp_path / "lock", timeout_s=0)
        first.release()
        assert not wait([waiting], timeout=0.5).done  # by flock it would be its turn
        other.release()
        assert waiting.result(timeout=60) == other.lock_file == str(tmp_path / "lock.held")


def test_a_writer_on_another_host_is_never_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing_module, "_LOCK_TIMEOUT_S", 2.5)
    (tmp_path / ".ctseg.no-flock").touch()
    gone = 2**22 + 1  # above the largest process number of Linux
    (tmp_path / ".ctseg.lock.held").write_text(f"{gone}\nnode7\n")
    with pytest.raises(SetupError, match=rf"process {gone} on host node7"), writing(tmp_path, "toy"):
        pytest.fail("the other host's lock was broken")


def test_no_version_is_removed_where_other_hosts_cannot_say_that_they_serve_it(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for number in (1, 2, 3, 4):
        write_toy_entry(root, version=number, build_info={"machine": "same"})
    (root / ".ctseg.no-flock").touch()
    entry = read_entry(root / "toy")
    assert all(may_be_served(version) for version in entry.versions)
    remove_superseded(root, [entry])
    assert [item.version for item in read_entry(root / "toy").versions] == [1, 2, 3, 4]
    (root / ".ctseg.no-flock").unlink()
    remove_superseded(root, [entry])
    assert [item.version for item in read_entry(root / "toy").versions] == [3, 4]


def test_flock_that_is_kept_to_one_host_does_not_serve(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    line = "36 35 {number} / {folder} rw,noatime shared:1 - nfs4 server:/models rw,vers=4.2,{options}\n"
    mounts.write_text(line.format(number=number, folder=tmp_path, options="local_lock=none"))
    assert why_flock_fails(tmp_path, mounts=mounts) == ""
    mounts.write_text(line.format(number=number, folder=tmp_path, options="local_lock=flock"))
    assert why_flock_fails(tmp_path, mounts=mounts) == "mounted with local_lock=flock"
    mounts.write_text(line.format(number="0:9999", folder="/elsewhere", options="nolock,local_lock=all"))
    assert why_flock_fails(tmp_path, mounts=mounts) == ""


def test_asking_leaves_nothing_behind(tmp_path: Path) -> None:
    assert flock_serves(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert Path(lock_of(tmp_path / "lock").lock_file).name == "lock"
    (tmp_path / ".ctseg.no-flock").touch()
    assert not flock_serves(tmp_path)
    assert Path(lock_of(tmp_path / "lock").lock_file).name == "lock.held"
