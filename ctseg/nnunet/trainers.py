"""Trainer classes, found without importing them: where ctseg's own lie, and whose code builds a network.

nnU-Net's own search imports every trainer file of nnU-Net and of ``nnUNet_extTrainer``; here files are only parsed.
"""

import ast
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ctseg.errors import CheckpointError

TRAINERS_PACKAGE = "ctseg.train.trainers"
"""The modules in :data:`TRAINERS_FOLDER`, by the name that imports them."""
TRAINERS_FOLDER = Path(__file__).parents[1] / "train" / "trainers"
"""What ``nnUNet_extTrainer`` has to hold so that nnU-Net's own commands find the Swin UNETR trainer."""

_LONGEST_LINE_OF_PARENTS = 32


def trainer_folders(value: str | None = None, separator: str = os.pathsep) -> list[str]:
    """Return the folders in which nnU-Net looks for trainers outside its own tree.

    Args:
        value: Of ``nnUNet_extTrainer``; None takes the environment's.
        separator: ``:``, or ``;`` on Windows, whose folders have a colon in them.
    """
    given = os.environ.get("nnUNet_extTrainer", "") if value is None else value  # noqa: SIM112
    return [part for part in given.split(separator) if part]


@dataclass(frozen=True)
class TrainerSource:
    """Where a trainer class stands.

    Attributes:
        name: Of the class.
        file: The file that defines it.
        root: The folder in which it was looked for.
        bases: Names of the classes that it inherits from, without their modules.
        builds_network: Whether ``build_network_architecture`` may be its own.
    """

    name: str
    file: Path
    root: Path
    bases: tuple[str, ...]
    builds_network: bool


def network_builder(trainer: str, roots: Sequence[Path]) -> TrainerSource:
    """Return the class whose ``build_network_architecture`` counts for a trainer: its own, or a parent's.

    Args:
        trainer: Name of the trainer class.
        roots: Folders in which trainer files are looked for, the first first.

    Raises:
        CheckpointError: A class is in none of the folders, or inherits from itself.
    """
    name = trainer
    for _ in range(_LONGEST_LINE_OF_PARENTS):
        source = _find(name, roots)
        if source is None:
            raise CheckpointError(
                f"trained by {trainer}, and the class {name} is neither in nnU-Net nor in a folder of "
                "nnUNet_extTrainer: add the folder of its file to that variable"
            )
        if source.builds_network or len(source.bases) != 1:
            return source
        (name,) = source.bases
    raise CheckpointError(f"trainer {trainer} inherits from itself")


def trainer_names(roots: Sequence[Path]) -> list[str]:
    """Return the names of the classes in folders of trainer files that are called trainers."""
    files = (file for root in roots for file in root.rglob("*.py"))
    return sorted({name for file in files for name in _classes_of(file) if "Trainer" in name})


def _find(name: str, roots: Sequence[Path]) -> TrainerSource | None:
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            if found := _classes_of(file).get(name):
                return TrainerSource(name=name, file=file, root=root, bases=found[0], builds_network=found[1])
    return None


@cache
def _classes_of(file: Path) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Parse a file: for each class the last parts of its bases' names, and whether it builds the network."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    classes = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
        defined = {item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)}
        plain = all(isinstance(item, ast.FunctionDef | ast.Expr | ast.Pass) for item in node.body)
        builds = "build_network_architecture" in defined or not plain or bool(node.decorator_list or node.keywords)
        classes[node.name] = (bases, builds)
    return classes
