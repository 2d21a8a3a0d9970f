"""The command ``recipe``: what several models do together, under one name."""

import argparse
from pathlib import Path
from typing import Any

from ctseg.cli.console import add_verbosity
from ctseg.cli.exit_codes import DONE
from ctseg.cli.parser import Parser
from ctseg.errors import SetupError


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``recipe``."""
    parser = commands.add_parser(
        "recipe",
        help="let several models of a repository work together, under one name",
        description="Write a recipe into a model repository: a cascade, an ensemble, a crop, a union, or what a file "
        "says. Members are the newest versions that are there; the recipe goes on with these and no others. "
        "`ctseg predict -m NAME` uses it as a model.",
    )
    parser.add_argument("-m", "--model", required=True, metavar="NAME", help="name of the recipe")
    parser.add_argument("--repository", type=Path, required=True, help="model repository with the members")
    kinds = parser.add_argument_group("what is done (one of these)").add_mutually_exclusive_group(required=True)
    kinds.add_argument(
        "--cascade", nargs=2, metavar=("FIRST", "SECOND"), help="nnU-Net's cascade: the second sees the first's labels"
    )
    kinds.add_argument(
        "--ensemble", nargs="+", metavar="MODEL", help="nnU-Net's ensemble: the mean of the probabilities decides"
    )
    kinds.add_argument(
        "--crop", nargs=2, metavar=("FINDER", "INSIDE"), help="the second works in the box of what the first finds"
    )
    kinds.add_argument(
        "--union", nargs="+", metavar="MODEL", help="all labels in one map, numbered anew; later ones are written over"
    )
    kinds.add_argument("--file", type=Path, metavar="JSON", help="a recipe, or a step of one, see docs/recipes.md")
    more = parser.add_argument_group("more of it")
    more.add_argument(
        "--postprocess_previous",
        action="store_true",
        default=None,
        help="cascade: post-process the first stage's labels",
    )
    more.add_argument(
        "--codes", type=Path, metavar="FILE", help="codes of labels for DICOM, JSON or CSV, see docs/dicom.md"
    )
    more.add_argument("--labels", nargs="+", metavar="LABEL", help="crop: names or values whose box counts")
    more.add_argument("--margin_mm", type=float, help="crop: by how much the box is widened (0)")
    more.add_argument(
        "--nothing_found", choices=["empty", "whole_scan"],
        help="crop: without these labels, an empty label map or all of the scan (default: empty)",
    )  # fmt: skip
    add_verbosity(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ctseg.files.codes import read_codes
    from ctseg.serving.recipe_entry import publish_recipe
    from ctseg.serving.recipes import read_step, recipe_of

    _check_options(args)
    codes = {} if args.codes is None else read_codes(args.codes)
    raw = read_step(args.file) if args.file is not None else {"step": _step(args)}
    recipe = recipe_of(args.model, raw.pop("step"), args.repository, **raw, codes=codes)
    version = publish_recipe(args.repository, recipe)
    members = ", ".join(member.model for member in recipe.members)
    print(f"{args.repository / args.model}: version {version}, {recipe.step.kind} of {members}")
    return DONE


def _check_options(args: argparse.Namespace) -> None:
    """Refuse what the kind of recipe does not look at."""
    for kind, options in (("cascade", ("postprocess_previous",)), ("crop", ("labels", "margin_mm", "nothing_found"))):
        given = tuple(option for option in options if getattr(args, option) is not None)
        if given and getattr(args, kind) is None:
            raise SetupError(f"only a {kind} has {', '.join(given)}", settings=given)


def _step(args: argparse.Namespace) -> dict[str, Any]:
    from ctseg.serving.recipes import spec_in, union_of, values_named

    if args.cascade is not None:
        first, second = args.cascade
        return {
            "kind": "cascade",
            "previous": first,
            "model": second,
            "postprocess_previous": bool(args.postprocess_previous),
        }
    if args.ensemble is not None:
        return {"kind": "ensemble", "members": [_one(model) for model in args.ensemble]}
    if args.union is not None:
        return union_of(args.union, args.repository)
    finder, inside = args.crop
    if not args.labels:
        raise SetupError(f"a crop needs the labels of {finder} whose box counts", settings=("labels",))
    return {
        "kind": "crop",
        "finder": _one(finder),
        "labels": values_named(args.labels, spec_in(args.repository, finder)),
        "margin_mm": args.margin_mm or 0.0,
        "inside": _one(inside),
        "nothing_found": args.nothing_found or "empty",
    }


def _one(model: str) -> dict[str, str]:
    return {"kind": "model", "model": model}
