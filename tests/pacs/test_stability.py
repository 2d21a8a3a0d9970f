from ctseg.pacs.stability import Stability, digest_of_instances


def test_a_series_is_stable_once_its_set_has_not_changed_for_long_enough():
    now = 0.0
    stability = Stability(60, clock=lambda: now)
    two, other, three = (digest_of_instances(frozenset(uids)) for uids in ("ab", "ac", "abc"))
    looks = [(0, two, False), (59, two, False), (60, two, True), (61, other, False), (100, three, False),
             (159, three, False), (160, three, True)]  # fmt: skip
    for now, digest, is_stable in looks:
        assert stability.is_stable("series", digest) is is_stable, now


def test_the_digest_is_that_of_the_set():
    assert digest_of_instances(frozenset({"1.2", "1.3"})) == digest_of_instances(frozenset({"1.3", "1.2"}))
    assert digest_of_instances(frozenset({"1.2", "1.3"})) != digest_of_instances(frozenset({"1.21.3"}))
