"""NiiVue, which shows scans and labels in a page; it is brought from npm when ctseg is built."""

from pathlib import Path

NAME = "niivue.js"
_PLACE = Path(__file__).parent / NAME

MISSING = (
    "this ctseg was built without its viewer, because npm could not be reached: pages have pictures, but no viewer. "
    "docs/install.md says how to build it again"
)


def viewer_script() -> str | None:
    """Return the viewer's script; None where ctseg was built without."""
    try:
        return _PLACE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
