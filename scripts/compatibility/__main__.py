"""Prove that models of older nnU-Nets are exported exactly; `make compatibility`.

    python -m scripts.compatibility --output compatibility_output
    python -m scripts.compatibility --versions 2.2.1 2.8.1

What is finished is not done again: environments, trainings, proofs. Exit status: 0 where all came as it should; 1
where something that is said to work does not.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.compatibility.data import make_dataset
from scripts.compatibility.environment import Workplace, make_environment
from scripts.compatibility.kinds import NNUNETS, kinds_of
from scripts.compatibility.page import page_of
from scripts.compatibility.proof import finding_of
from scripts.compatibility.training import train_all

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Train, prove, write the page; return the exit status."""
    everything = [nnunet.version for nnunet in NNUNETS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "compatibility_output", help="default: %(default)s")
    parser.add_argument("--versions", nargs="+", choices=everything, default=everything, help="default: all")
    parser.add_argument("--again", action="store_true", help="prove anew what was proven; trainings stay")
    args = parser.parse_args(argv)
    output: Path = args.output.resolve()
    scan = make_dataset(ROOT / "examples" / "demo_data" / "images", output / "raw")
    places = {nnunet.version: Workplace(nnunet, output) for nnunet in NNUNETS}
    failed = [name for name in args.versions if not _passes(places[name], scan, again=args.again)]
    findings = [
        finding
        for place in places.values()
        for kind in kinds_of(place.nnunet)
        if (finding := finding_of(place, kind)) is not None
    ]
    PAGE.write_text(page_of(findings), encoding="utf-8")
    print(f"{PAGE}: {len(findings)} rows")
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _passes(place: Workplace, scan: Path, *, again: bool) -> bool:
    """Train and prove one release; return whether all came as it should."""
    print(f"nnU-Net {place.nnunet.version}", flush=True)
    if again:
        shutil.rmtree(place.folder / "findings", ignore_errors=True)
    try:
        print("    environment", flush=True)
        make_environment(place)
        print("    training", flush=True)
        train_all(place, scan)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"    FAILED: {error}", file=sys.stderr, flush=True)
        return False
    print("    proof", flush=True)
    words = [sys.executable, "-m", "scripts.compatibility.proof", str(place.output), place.nnunet.version]
    return subprocess.run(words, cwd=ROOT, env={**os.environ, **place.variables()}, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
