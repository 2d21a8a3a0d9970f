"""``python -m benchmarks``: time ctseg beside nnU-Net on this machine."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.printing import print_the_log
from ctseg.cli.parser import Parser, worded
from ctseg.errors import CtsegError, SetupError

_DEMO_SCANS = Path("examples/demo_data/images")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks",
        description="Run nnUNetv2_predict and ctseg predict in turns on the same scans with the same checkpoints, and "
        "single functions of both; write benchmark.json and benchmark.md. Leave the machine alone meanwhile.",
    )
    parser.add_argument("--output", "-o", type=Path, default=Path("benchmark_output"), help="default: %(default)s")
    parser.add_argument(
        "-i", "--input", type=Path, default=_DEMO_SCANS, help="CT scans, <case>_0000.nii.gz; default: %(default)s"
    )
    parser.add_argument("--large", type=Path, help="CT of a whole chest, in any format that ITK reads")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", dest="mode", action="store_const", const="quick", help="four scans: about 12 minutes on two cores"
    )
    size.add_argument(
        "--full",
        dest="mode",
        action="store_const",
        const="full",
        help="every scan with every network, three runs: hours",
    )
    size.add_argument(
        "--tiny",
        dest="mode",
        action="store_const",
        const="tiny",
        help="only check that the benchmark runs: no figure counts",
    )
    parser.add_argument("--minutes", type=float, help="start no step later (quick: 12; else no limit)")
    parser.set_defaults(mode="standard")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where a step failed, 2 where it cannot run."""
    parser = _parser()
    args = parser.parse_args(argv)
    print_the_log()
    try:
        return _run(args)
    except CtsegError as error:
        print(worded(error, parser), file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    needed = ("nnunetv2", "psutil", "SimpleITK", "pydicom")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise SetupError(f"the benchmark needs {', '.join(missing)}: run it by `make benchmark`, which installs them")
    from benchmarks.results import PAGE_NAME
    from benchmarks.run import run_benchmark

    result = run_benchmark(args.input, args.output, mode=args.mode, large=args.large, minutes=args.minutes)
    met = sum(budget.met for budget in result.budgets)
    print(
        f"{met} of {len(result.budgets)} budgets met, {len(result.problems)} steps missing: {args.output / PAGE_NAME}"
    )
    return 1 if any(problem.is_failure for problem in result.problems) else 0


if __name__ == "__main__":
    sys.exit(main())
