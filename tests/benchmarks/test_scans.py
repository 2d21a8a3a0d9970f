"""Scans to measure with, made from those given."""

import pytest

from benchmarks.scans import collect_scans


def test_made_scans_differ_from_those_given_and_one_is_long(ct_piece, tmp_path):
    scans = collect_scans(ct_piece.parent, tmp_path / "scans", ct_piece, more=True, large_planes=70)
    small, big = scans.small, scans.large
    assert [scan.case for scan in small] == ["piece", "piece_mirrored", "piece_turned"]
    assert [scan.case for scan in big] == ["chest", "chest_mirrored", "long"]
    assert [scan.case for scan in scans.given] == ["piece"]
    files = [tmp_path / "scans" / f"{scan.case}_0000.nii.gz" for scan in (*small, big[-1])]
    assert len({path.read_bytes() for path in files}) == 4
    assert big[-1].shape == (70, *small[0].shape[1:])
    assert big[-1].spacing_mm[0] == pytest.approx(small[0].spacing_mm[0] / round(small[0].spacing_mm[0]))
