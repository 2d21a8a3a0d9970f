"""Headers of DICOM files, read once and in parallel, put together to series."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ctseg.files.dicom.assembling import series_of
from ctseg.files.dicom.frames import CtFile
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.reading import OtherFile, read_file
from ctseg.files.dicom.series import CtSeries, FoundDicom, LeftOut
from ctseg.files.regular import open_regular

_THREADS = 8
"""That wait for a disk or a share; parsing itself runs on one core."""
_CHUNK = 1 << 20


def find_series(files: Sequence[Path], *, keywords: Sequence[str] = ()) -> FoundDicom:
    """Read the headers of files with any names, and say which series they hold.

    Args:
        files: Of any kind; what is no DICOM is in ``others``.
        keywords: Of tags that are kept as text in :attr:`CtSeries.tags`.
    """
    with quiet():
        read = _read_files(files, keywords)
        grouped: dict[tuple[str, str], list[CtFile]] = defaultdict(list)
        left_out: Counter[OtherFile] = Counter()
        for found in read:
            if isinstance(found, CtFile):
                grouped[found.study_uid, found.series_uid].append(found)
            elif found is not None:
                left_out[found] += 1
        unread = _folders_of_unread(files, read)
        series = []
        for group in grouped.values():
            kept, problem = _each_instance_once(group)
            series.append(_warned(series_of(kept, problem), unread))
            if doubled := len(group) - len(kept):
                left_out[_doubled(series[-1])] += doubled
    others = tuple(path for path, found in zip(files, read, strict=True) if found is None)
    return FoundDicom(tuple(sorted(series, key=_order_of_series)), _merged(left_out), others)


def _read_files(files: Sequence[Path], keywords: Sequence[str]) -> list[CtFile | OtherFile | None]:
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ctseg-headers")
    try:
        return list(pool.map(lambda path: read_file(path, keywords), files))
    except RuntimeError:  # no more threads are to be had
        return [read_file(path, keywords) for path in files]
    finally:
        pool.shutdown(cancel_futures=True)


def _each_instance_once(files: Iterable[CtFile]) -> tuple[list[CtFile], str | None]:
    """Return files without those that repeat another one, and why the series is refused if some only seem to.

    The order, and which of equal files is kept, depends on what the files are, not on how they were found.
    """
    instances: dict[str, list[CtFile]] = defaultdict(list)
    kept = []
    for file in sorted(files, key=lambda file: (file.sop_instance_uid, str(file.path))):
        same = instances[file.sop_instance_uid]
        if not (file.sop_instance_uid and len(same) == 1 and _are_equal(same[0], file)):
            same.append(file)
            kept.append(file)
    different = [same for uid, same in instances.items() if uid and len(same) > 1]
    if not different:
        return kept, None
    return kept, (
        f"different contents under one SOPInstanceUID for {len(different)} of {len(instances)} slices: keep the right "
        "file of each"
    )


def _are_equal(one: CtFile, other: CtFile) -> bool:
    """Whether two files hold the same slice: byte by byte, or at least all that is read of them."""
    try:
        if _from(one.path, 0, other.path, 0):
            return True
        is_alike = replace(one, path=other.path) == other and one.voxels_at and other.voxels_at
        return bool(is_alike) and _from(one.path, one.voxels_at, other.path, other.voxels_at)
    except OSError:
        return False


def _from(one: Path, one_at: int, other: Path, other_at: int) -> bool:
    """Whether two files are equal from some place on."""
    with open_regular(one) as first, open_regular(other) as second:
        first.seek(one_at)
        second.seek(other_at)
        while True:
            chunk = first.read(_CHUNK)
            if chunk != second.read(_CHUNK):
                return False
            if not chunk:
                return True


def _folders_of_unread(files: Sequence[Path], read: Sequence[CtFile | OtherFile | None]) -> Counter[Path]:
    return Counter(
        path.parent for path, found in zip(files, read, strict=True) if isinstance(found, OtherFile) and found.is_unread
    )


def _warned(series: CtSeries, unread: Counter[Path]) -> CtSeries:
    """Return a series with a warning of files beside it that may be slices of it: its ends would be missing unseen."""
    count = sum(unread[folder] for folder in {path.parent for path in series.paths})
    if not count or series.problem is not None:
        return series
    told = f"{count} file{'s' if count > 1 else ''} beside its own cannot be read: slices at its ends may be missing"
    return replace(series, warnings=(*series.warnings, told))


def _doubled(series: CtSeries) -> OtherFile:
    return OtherFile("doubled file", series.study_uid, series.series_uid, series.series_number, series.description)


def _merged(left_out: Counter[OtherFile]) -> tuple[LeftOut, ...]:
    found = [
        LeftOut(file.what, file.study_uid, file.series_uid, file.series_number, file.description, count)
        for file, count in left_out.items()
    ]
    return tuple(sorted(found, key=_order_of_left_out))


def _order_of_series(series: CtSeries) -> tuple[str, bool, int, str]:
    return series.study_uid, series.series_number is None, series.series_number or 0, series.series_uid


def _order_of_left_out(item: LeftOut) -> tuple[str, bool, int, str, str, str]:
    number = item.series_number
    return item.study_uid, number is None, number or 0, item.series_uid, item.what, item.description
