"""The command ``benchmark``."""

import argparse
from pathlib import Path

_DEMO_SCANS = Path("examples/demo_data/images")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``benchmark``."""
    parser = commands.add_parser(
        "benchmark",
        help="time ctseg beside nnU-Net on this machine",
        description="Run nnUNetv2_predict and ctseg predict in turns on the same scans with the same checkpoints, and "
        "single functions of both; write benchmark.json and benchmark.md. Leave the machine alone meanwhile.",
        allow_abbrev=False,
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
    parser.set_defaults(run=_run, mode="standard")


def _run(args: argparse.Namespace) -> int:
    import importlib.util

    from ctseg.errors import SetupError

    if missing := [name for name in ("nnunetv2", "psutil", "SimpleITK") if importlib.util.find_spec(name) is None]:
        raise SetupError(f"the benchmark needs {', '.join(missing)}: pip install 'ctseg[benchmark]'")
    from ctseg.benchmark.results import PAGE_NAME
    from ctseg.benchmark.run import run_benchmark

    result = run_benchmark(args.input, args.output, mode=args.mode, large=args.large, minutes=args.minutes)
    met = sum(budget.met for budget in result.budgets)
    print(
        f"{met} of {len(result.budgets)} budgets met, {len(result.problems)} steps missing: {args.output / PAGE_NAME}"
    )
    return 1 if any(problem.is_failure for problem in result.problems) else 0
