"""Claims: one run works on a case; whoever has lost its claim puts nothing in place."""

import threading
from pathlib import Path

import pytest

from ctseg.predict.claims import Claim, ClaimLostError, Claims
from ctseg.predict.presence import OtherRuns, Presence


class Known(OtherRuns):
    """Runs of which the test says who is dead, and who silent."""

    def __init__(self, output: Path) -> None:
        super().__init__(output)
        self.dead: set[str] = set()
        self.silent: set[str] = set()

    def is_dead(self, run: str) -> bool:
        return run in self.dead

    def is_silent(self, run: str) -> bool:
        return run in self.silent


@pytest.fixture
def one(tmp_path: Path):
    with Presence(tmp_path) as presence:
        yield presence


@pytest.fixture
def two(tmp_path: Path):
    with Presence(tmp_path) as presence:
        yield presence


def take(claims: Claims, case: str, *, suspects: bool = False) -> Claim:
    claim = claims.take(case, suspects=suspects)
    assert claim is not None
    return claim


def test_only_one_of_many_gets_a_case(tmp_path: Path, one: Presence) -> None:
    claims = Claims(tmp_path, one, Known(tmp_path))
    taken: list[Claim | None] = []
    together = threading.Barrier(8)

    def try_it() -> None:
        together.wait(30)
        taken.append(claims.take("a"))

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in taken) == 1


@pytest.mark.parametrize("state", ["dead", "silent"])
def test_a_case_is_taken_over_from_the_dead_and_silent_only(
    tmp_path: Path, one: Presence, two: Presence, state: str
) -> None:
    known = Known(tmp_path)
    first, second = Claims(tmp_path, one, known), Claims(tmp_path, two, known)
    claim = take(first, "a")
    assert second.take("a") is None
    getattr(known, state).add(one.run)
    assert second.take("a") is None, "it may have killed the other"
    theirs = take(second, "a", suspects=True)
    with pytest.raises(ClaimLostError, match="case a: another run has taken it over"), first.putting(claim, {}):
        pytest.fail("the block must not run")
    first.drop(claim)  # changes nothing
    ran = False
    with second.putting(theirs, {"a.nii.gz": "1"}):
        ran = True
    assert ran
    assert first.take("a") is not None, "the claim has ended with the block"


def test_what_a_killed_run_was_putting_in_place_is_passed_on(tmp_path: Path, one: Presence, two: Presence) -> None:
    known = Known(tmp_path)
    first, second = Claims(tmp_path, one, known), Claims(tmp_path, two, known)
    claim = take(first, "a")

    class Killed(BaseException):
        pass

    with pytest.raises(Killed), first.putting(claim, {"a.nii.gz": "1"}):
        raise Killed
    known.dead.add(one.run)
    assert take(second, "a", suspects=True).left == {"a.nii.gz": "1"}


def test_a_case_that_is_dropped_is_free(tmp_path: Path, one: Presence, two: Presence) -> None:
    known = Known(tmp_path)
    first, second = Claims(tmp_path, one, known), Claims(tmp_path, two, known)
    first.drop(take(first, "a"))
    assert second.take("a") is not None


def test_without_hard_links_a_case_is_claimed_all_the_same(
    tmp_path: Path, one: Presence, two: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    known = Known(tmp_path)
    first, second = Claims(tmp_path, one, known), Claims(tmp_path, two, known)
    take(first, "a")
    assert second.take("a") is None
