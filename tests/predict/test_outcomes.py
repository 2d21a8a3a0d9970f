"""How an exception stands in an outcome."""

from ctseg.errors import InputError
from ctseg.predict.outcomes import CaseError, error_of
from tests.support.unprivileged import error_of as last_line_of


def test_what_ctseg_raised_on_purpose_is_taken_as_it_is() -> None:
    told = error_of(InputError("a.nii.gz: is empty", settings=("part_id",)))
    assert told == CaseError(type="InputError", message="a.nii.gz: is empty", settings=("part_id",))


def test_a_bug_says_that_it_was_not_expected() -> None:
    assert error_of(KeyError("x")) == CaseError(type="KeyError", message="unexpected: KeyError('x')")
    assert error_of(RuntimeError("can't start new thread")).message.startswith("unexpected")  # words prove nothing


def test_memory_that_did_not_suffice_is_told_with_what_to_do() -> None:
    told = error_of(MemoryError("Unable to allocate 6.6 GiB"))
    assert told.type == "MemoryError"
    assert "Unable to allocate 6.6 GiB" in told.message
    assert "look whether its voxel size is right" in told.message
    assert "MemoryError" in error_of(MemoryError()).message


def test_a_thread_that_could_not_start_is_told_with_what_to_do() -> None:
    before = "import resource, threading; from ctseg.predict.outcomes import error_of"
    then = (
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try: threading.Thread(target=print).start()\n"
        "except RuntimeError as error: raise SystemExit(error_of(error).message)\n"
        "raise SystemExit('it started')"
    )
    told = last_line_of(before, then)
    assert told.startswith("no thread could be started (can't start new thread): let this user or container have more")
