"""The command ``dataset overview``: a data set to look at."""

import argparse
from pathlib import Path

from ctseg.cli.nnunet import add_folders, given_folders, told_on_terminal
from ctseg.cli.parser import Parser
from ctseg.errors import SetupError


def add_overview(actions: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``overview`` to the actions of ``dataset``."""
    parser = actions.add_parser(
        "overview",
        help="a page with spacings, intensities, label volumes, pictures, and what sticks out",
        description="Measure every case of a data set and write overview.html, overview.json and overview.csv. They "
        "hold patient data. Exit status: 0, 1 where a case has a problem (it has its row all the same), 2 wrong use or "
        "setup, 3 the disk is full or went away, 130 interrupted, 143 terminated.",
    )
    parser.add_argument(
        "-d", dest="dataset", required=True, metavar="ID", help="id, DatasetXXX_Name, or a folder with dataset.json"
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="DIR", help="default: the data set's folder in nnUNet_preprocessed"
    )
    parser.add_argument(
        "-np", dest="workers", type=int, metavar="N", help="cases at once (default: cores, up to 8, as memory allows)"
    )
    add_folders(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ctseg.files.identity import printable
    from ctseg.train.overview import look_at_dataset, write_overview
    from ctseg.train.paths import dataset_name, require_paths

    given = Path(args.dataset)
    is_folder = (given / "dataset.json").is_file()
    needed = (set() if is_folder else {"nnUNet_raw"}) | (set() if args.output else {"nnUNet_preprocessed"})
    if args.workers is not None and args.workers < 1:
        raise SetupError(f"-np {args.workers}: expected 1 or more")
    paths = require_paths(needed, given_folders(args)) if needed else None
    folder = given.absolute()
    if not is_folder and paths is not None and paths.raw is not None:
        folder = paths.raw / dataset_name(paths, args.dataset)
    output = args.output
    if output is None and paths is not None and paths.preprocessed is not None:
        output = paths.preprocessed / folder.name
    looked_at = look_at_dataset(folder, workers=args.workers, on_case=told_on_terminal())
    page = write_overview(looked_at, output)
    overview = looked_at.overview
    broken = {finding.case for finding in overview.findings if finding.kind == "problem"}
    for finding in overview.findings[:10]:
        whose = "" if finding.case is None else f"{finding.case}: "
        print(printable(f"  [{finding.kind}] {whose}{finding.message}"))
    if len(overview.findings) > 10:
        print(f"  … and {len(overview.findings) - 10} more")
    print(f"{overview.dataset}: {len(overview.cases)} cases, {len(overview.findings)} things stick out: {page}")
    return 1 if broken else 0
