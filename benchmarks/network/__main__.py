"""``python -m benchmarks.network``: a folder over links, beside the server's own machine."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.network.results import PAGE_NAME
from benchmarks.network.run import run_network_benchmark
from benchmarks.network.sizes import TINY, WHOLE
from benchmarks.printing import print_the_log
from ctseg.cli.parser import Parser, worded
from ctseg.errors import CtsegError
from ctseg.files.signals import signals_as_exit

_DEMO_SCANS = Path("examples/demo_data/images")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.network",
        description="Run ctseg predict on the server's machine and over links of 1 and 10 Gbit/s, by windows and by "
        "whole scans; write network.json and network.md. Links are network namespaces that tc holds to a rate (Linux, "
        "root), else a relay. Leave the machine alone meanwhile.",
    )
    parser.add_argument("--output", "-o", type=Path, default=Path("benchmark_output"), help="default: %(default)s")
    parser.add_argument(
        "-i", "--input", type=Path, default=_DEMO_SCANS, help="CT scans, <case>_0000.nii.gz; default: %(default)s"
    )
    parser.add_argument("--large", type=Path, help="CT of a whole chest, in any format that ITK reads")
    parser.add_argument("--tiny", action="store_true", help="only check that the benchmark runs: no figure counts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where a step failed, 2 where it cannot run."""
    parser = _parser()
    args = parser.parse_args(argv)
    print_the_log()
    try:
        with signals_as_exit():  # a server and a link are not left behind
            result = run_network_benchmark(args.input, args.output, TINY if args.tiny else WHOLE, args.large)
    except CtsegError as error:
        print(worded(error, parser), file=sys.stderr)
        return 2
    print(f"{len(result.rows)} rows, {len(result.problems)} steps missing: {args.output / PAGE_NAME}")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
