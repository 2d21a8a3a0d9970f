"""Proves the product on this machine's GPU, part by part; what ``make gpu`` runs.

Writes ``gpu.json`` and ``gpu.md`` after each part: a part that fails, dies or takes too long is told, and the
others go on. Ends with status 0 only where nothing failed. ``--rehearse`` runs the same on the CPU at small sizes.

On a machine without a network and with torch alone, ``--wheels`` names a folder that ``make gpu-wheels`` filled:
they are installed into an environment of their own, which goes on with this one's torch.

Usage, in the root of the repository: ``python -m scripts.gpu_proof --output gpu_output``.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.gpu_proof.environment import make_environment

BUDGET_S = 480.0
REHEARSAL_S = 1500.0
INSIDE = "CTSEG_GPU_PROOF_ENVIRONMENT"
"""Set in the process that runs in the environment of the wheels."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; return 0 where nothing failed, 1 where something did, 2 where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu_proof", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_output"), help="default: %(default)s")
    parser.add_argument("--wheels", type=Path, help="folder of `make gpu-wheels`; also wheels cut into pieces")
    parser.add_argument("--environment", type=Path, help="where the wheels are installed; default: a temporary folder")
    parser.add_argument("--scratch", type=Path, help="keep there what the parts make; default: a temporary folder")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at small sizes: no figure counts")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts alone")
    parser.add_argument(
        "--budget", type=float, metavar="S", help=f"seconds; default: {BUDGET_S:g}, in a rehearsal {REHEARSAL_S:g}"
    )
    args = parser.parse_args(argv)
    if args.wheels is not None and INSIDE not in os.environ:
        environment = args.environment or Path(tempfile.mkdtemp(prefix="ctseg-gpu-"))
        try:
            python = make_environment(environment, args.wheels)
        except (OSError, ValueError, RuntimeError) as error:
            print(error, file=sys.stderr)
            return 2
        os.environ[INSIDE] = str(environment)
        words = [str(python), "-m", "scripts.gpu_proof", *(sys.argv[1:] if argv is None else argv)]
        os.execv(python, words)  # noqa: S606 (an argument list; this process goes on as that one)
    return _prove(args, parser)


def _prove(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from ctseg.errors import CtsegError
    from scripts.gpu_proof.proof import Plan, prove
    from scripts.gpu_proof.rows import PAGE_NAME
    from scripts.gpu_proof.sections import SECTIONS

    names = [section.name for section in SECTIONS]
    if unknown := sorted(set(args.only or ()) - set(names)):
        parser.error(f"no part {', '.join(unknown)}: there are {', '.join(names)}")
    sections = [section for section in SECTIONS if not args.only or section.name in args.only]
    args.output.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the part that runs is ended, too
        signal.signal(number, lambda *_: sys.exit(143))
    budget_s = args.budget or (REHEARSAL_S if args.rehearse else BUDGET_S)
    with tempfile.TemporaryDirectory(prefix="ctseg-gpu-scratch-", ignore_cleanup_errors=True) as temporary:
        scratch = args.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        plan = Plan(sections, args.output.resolve(), scratch.resolve(), args.rehearse, budget_s)
        try:
            proof = prove(plan)
        except CtsegError as error:
            print(error, file=sys.stderr)
            return 2
    print(
        f"{proof.count('ok')} ok, {proof.count('failed')} failed, {proof.count('not found')} not found, "
        f"{proof.count('not run')} not run in {proof.seconds:.0f} s: {args.output / PAGE_NAME}"
    )
    return 1 if proof.count("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
