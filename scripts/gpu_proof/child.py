"""One section in a process of its own: ``python -m scripts.gpu_proof.child MODULE NAME SCRATCH LIMIT_S``."""

import argparse
import importlib
import logging
import time
from pathlib import Path

from scripts.gpu_proof.bench import Bench
from scripts.gpu_proof.rows import Teller


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("name")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("limit_s", type=float)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    section = importlib.import_module(args.module)
    bench = Bench(args.scratch, args.rehearse, time.monotonic() + args.limit_s)
    section.run(bench, Teller(args.name, args.scratch / f"{args.name}.rows"))


if __name__ == "__main__":
    main()
