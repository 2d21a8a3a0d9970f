"""The repository as this server sees it: links to the models, with what it can load."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ctseg.container.versions import served_versions
from ctseg.predict.whole_scan import scan_entry
from ctseg.serving.entries import CONFIG_NAME, Entry, RecipeEntry, scan_versions

_log = logging.getLogger(__name__)


def served_view(
    entries: Sequence[Entry],
    view: Path,
    fitting: Mapping[str, int],
    recipes: Sequence[RecipeEntry] = (),
    *,
    grows: bool = False,
) -> Path:
    """Make the repository that this server sees. Whatever else lies in the shared one, it does not see.

    Beside a model stands its entry for whole scans, with those of its versions whose networks are seen.

    Args:
        entries: What the repository holds.
        view: An empty or missing folder.
        fitting: The version that was built for this machine, by the model's name.
        recipes: Which recipes it holds; they are seen whole.
        grows: Let later versions be seen too, where all that Triton would take now can be loaded.

    Returns:
        ``view``.
    """
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for entry in entries:
        served = [item.version for item in served_versions(entry, fitting.get(entry.name))]
        scans = scan_versions(entry.folder.parent, entry.name)
        scan_folder = entry.folder.with_name(scan_entry(entry.name))
        hidden = [str(item.version) for item in entry.versions[-2:] if item.version not in served]
        if hidden:
            _log.info(
                "%s: versions %s are for other machines or of another TensorRT: hidden", entry.name, ", ".join(hidden)
            )
        if grows and not hidden:
            for folder in (entry.folder, *([scan_folder] if scans else [])):
                (view / folder.name).symlink_to(folder, target_is_directory=True)
            continue
        _link_versions(view, entry.folder, served)
        _link_versions(view, scan_folder, set(scans) & set(served))
    for recipe in recipes:
        (view / recipe.name).symlink_to(recipe.folder, target_is_directory=True)
    return view


def names_in(view: Path) -> list[str]:
    """Return what a server sees."""
    return sorted(path.name for path in view.iterdir())


def _link_versions(view: Path, folder: Path, versions: Iterable[int]) -> None:
    """Link some versions of an entry, and its configuration; nothing where there are none."""
    numbers = list(versions)
    if not numbers:
        return
    linked = view / folder.name
    linked.mkdir()
    (linked / CONFIG_NAME).symlink_to(folder / CONFIG_NAME)
    for number in numbers:
        (linked / str(number)).symlink_to(folder / str(number), target_is_directory=True)
