"""Photograph a page of the demo for the README: `make demo-picture`, with Chromium (scripts/browser.sh)."""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console

from ctseg.evaluate.pages.run import FOLDER
from scripts.demo import MODELS, run
from tests.support.browser import visiting

CASE = "STS_042"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the picture, a PNG")
    parser.add_argument("--demo", type=Path, help="what `make demo` has written (default: run its first model)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo = args.demo or Path(folder)
        if args.demo is None:
            run(MODELS[0], demo, Console())
        photograph(demo / MODELS[0].name / FOLDER / "cases" / f"{CASE}.html", args.output)


def photograph(page: Path, picture: Path) -> None:
    """Write what a case's page shows, without the outline of the reference; in 256 colours."""
    with visiting(1300, 860) as visit:
        visit.open(page, viewer=True)
        visit.page.uncheck("#outline")
        visit.page.evaluate("window.scrollTo(0, document.querySelector('.viewer').offsetTop - 8)")
        visit.page.wait_for_timeout(1000)
        shot = Image.open(io.BytesIO(visit.page.locator(".viewer").screenshot())).convert("RGB")
    shot.quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
