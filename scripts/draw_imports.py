"""Draw which room of ctseg imports which, from the imports themselves: an arrow upwards would be a broken rule.

    .venv/bin/python scripts/draw_imports.py --output docs/pictures/imports.svg

The order of the rooms is that of the import-linter contract in pyproject.toml.
"""

import argparse
import sys
from pathlib import Path

import grimp
import matplotlib.pyplot as plt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Draw; return 1 where an arrow points upwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="picture to write: .svg or .png")
    args = parser.parse_args()
    rows = layers()
    arrows = imports_between({room for row in rows for room in row})
    draw(rows, arrows, args.output)
    height = {room: -number for number, row in enumerate(rows) for room in row}
    upwards = sorted((one, other) for one, other in arrows if height[other] >= height[one])
    for one, other in upwards:
        print(f"{one} imports {other}, which stands above or beside it", file=sys.stderr)
    return 1 if upwards else 0


def layers() -> list[list[str]]:
    """Return the rooms of each row, the highest first; without the base modules, which every room may import."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    house = next(contract for contract in contracts if contract["type"] == "layers")
    rows = [[room.strip() for room in row.split("|")] for row in house["layers"]]
    return [row for row in rows if all((ROOT / "ctseg" / room).is_dir() for room in row)]


def imports_between(rooms: set[str]) -> dict[tuple[str, str], int]:
    """Return how many modules of one room import from another."""
    graph = grimp.build_graph("ctseg")
    arrows: dict[tuple[str, str], int] = {}
    for module in graph.modules:
        room = _room_of(module)
        others = {_room_of(name) for name in graph.find_modules_directly_imported_by(module)}
        for other in others & rooms - {room}:
            if room in rooms:
                arrows[room, other] = arrows.get((room, other), 0) + 1
    return arrows


def _room_of(module: str) -> str:
    """Return the room of a module; empty for the package itself."""
    return ".".join(module.split(".")[1:2])


def draw(rows: list[list[str]], arrows: dict[tuple[str, str], int], path: Path) -> None:
    """Draw the rooms in rows and an arrow for each pair, as thick as there are modules that import."""
    plt.rcParams["svg.hashsalt"] = "imports"
    figure, axes = plt.subplots(figsize=(11, 0.85 * len(rows)))
    place = {
        room: ((column - (len(row) - 1) / 2) * 2.6 + 1.9 * (-1) ** number * (len(row) == 1), -number)
        for number, row in enumerate(rows)
        for column, room in enumerate(row)
    }
    colours = plt.get_cmap("tab20").colors
    for index, ((one, other), count) in enumerate(sorted(arrows.items(), key=lambda item: -item[1])):
        colour = colours[list(place).index(one) % len(colours)]
        axes.annotate(
            "", xy=place[other], xytext=place[one],
            arrowprops={
                "arrowstyle": "-|>", "color": colour, "alpha": 0.75, "linewidth": 0.7 + 0.25 * min(count, 8),
                "shrinkA": 14, "shrinkB": 14, "connectionstyle": f"arc3,rad={0.08 * (-1) ** index}",
            },
        )  # fmt: skip
    for room, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "black"}
        axes.text(x, y, room, ha="center", va="center", fontsize=11, bbox=box, zorder=3)
    axes.set_xlim(-5.5, 5.5)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    undated = {"Date": None} if path.suffix == ".svg" else None  # the same imports, the same file
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white", metadata=undated)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
