"""Which flips mirroring takes."""

from ctseg.numerics.mirroring import mirror_subsets


def test_subsets_begin_with_no_flip_and_hold_every_choice_of_axes_once() -> None:
    assert mirror_subsets((0, 1, 2)) == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert mirror_subsets((2, 0)) == [(), (0,), (2,), (0, 2)]
    assert mirror_subsets(()) == [()]
