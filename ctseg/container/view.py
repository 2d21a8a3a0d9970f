"""The repository as this server sees it: links to the models, with what it can load."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ctseg.container.versions import served_versions
from ctseg.serving.entries import CONFIG_NAME, Entry, RecipeEntry

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
        folder = view / entry.name
        versions = served_versions(entry, fitting.get(entry.name))
        hidden = [str(item.version) for item in entry.versions[-2:] if item not in versions]
        if hidden:
            _log.info(
                "%s: versions %s are for other machines or of another TensorRT: hidden", entry.name, ", ".join(hidden)
            )
        if grows and not hidden:
            folder.symlink_to(entry.folder, target_is_directory=True)
            continue
        folder.mkdir()
        (folder / CONFIG_NAME).symlink_to(entry.folder / CONFIG_NAME)
        for version in versions:
            (folder / str(version.version)).symlink_to(version.folder, target_is_directory=True)
    for recipe in recipes:
        (view / recipe.name).symlink_to(recipe.folder, target_is_directory=True)
    return view
