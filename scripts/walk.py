"""Type the walk of docs/walk.md on small pieces of real CT, and look at what each command leaves.

    python -m scripts.walk --output walk_output

The commands stand in the page, and in its last table the words that make them short; nothing is typed twice.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from ctseg.evaluate.evaluation import read_evaluation
from scripts.composition_labels import composition

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "walk.md"
SCANS = ROOT / "examples" / "demo_data" / "images"
TRAINING, NEW = ("STS_008", "STS_025"), "STS_042"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
SIDE, SLICES = 48, 30
"""Voxels of a piece, along x and y, and along z."""
DATASET = "Dataset501_Composition"


def commands_of(page: str) -> list[list[str]]:
    """Return the words of the commands of a page, with what its table adds."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.strip()]
    added = re.findall(r"^\| `(ctseg [^`]+)` \| `([^`]+)` \|$", page, re.MULTILINE)
    for begin, words in added:
        found = [command for command in commands if command[: len(begin.split())] == begin.split()]
        if len(found) != 1:
            raise SystemExit(f"{PAGE}: {len(found)} commands begin with {begin}")
        found[0].extend(shlex.split(words))
    return commands


def cut_pieces(work: Path) -> None:
    """Make folders as somebody has them: four pieces each of two scans to train with, two of a third one to segment."""
    for patient, images, labels, sides in (
        *((patient, "my_cts", "my_labels", ("left", "right")) for patient in TRAINING),
        (NEW, "new_cts", "new_labels", ("middle",)),
    ):
        image = nib.load(SCANS / f"{patient}_0000.nii.gz")
        drawn = composition(np.asarray(image.dataobj), image.header.get_zooms()[:3])
        drawn_image = nib.Nifti1Image(drawn, image.affine)
        places = [(x, y) for x in ("left", "right") for y in sides]
        for number, (x, y) in enumerate(places, start=1):
            box = (beside(image.shape[0], x), beside(image.shape[1], y), beside(image.shape[2], "middle", SLICES))
            for whole, folder in ((image, images), (drawn_image, labels)):
                (work / folder).mkdir(exist_ok=True)
                nib.save(whole.slicer[box], work / folder / f"{patient}_{number}.nii.gz")


def beside(size: int, side: str, length: int = SIDE) -> slice:
    """Return so many voxels of an axis on one side of its middle, or around it."""
    middle = size // 2
    first = {"left": middle - length, "right": middle, "middle": middle - length // 2}[side]
    return slice(first, first + length)


def check(work: Path, command: list[str], said: str) -> str:
    """Look at what a command has left; return it in words.

    Raises:
        AssertionError: It is not what it should be.
    """
    name = " ".join(command[1:3]) if command[1] == "dataset" else command[1]
    return CHECKS[name](work, said)


def created(work: Path, said: str) -> str:
    images = sorted((work / "nnUNet_raw" / DATASET / "imagesTr").iterdir())
    assert len(images) == 8, images
    assert "8 cases" in said, said
    return "8 cases"


def verified(work: Path, said: str) -> str:
    assert "8 cases, no problems" in said, said
    return "8 cases, no problems"


def looked_at(work: Path, said: str) -> str:
    pages = sorted((work / "nnUNet_preprocessed" / DATASET).glob("*.html"))
    assert len(pages) == 1, pages
    text = pages[0].read_text(encoding="utf-8")
    assert all(f"{patient}_{number}" in text for patient in TRAINING for number in range(1, 5)), pages
    return f"{pages[0].name}, {len(text) / 1e6:.1f} MB"


def planned(work: Path, said: str) -> str:
    plans = json.loads((work / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").read_text())
    cases = list((work / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_3d_fullres").glob("*[0-9].b2nd"))
    assert len(cases) == 8, cases
    return f"patch {plans['configurations']['3d_fullres']['patch_size']}"


def trained(work: Path, said: str) -> str:
    model = work / "nnUNet_results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    folds = sorted(model.glob("fold_*"))
    assert folds, model
    for fold in folds:
        for file in ("checkpoint_final.pth", "validation/summary.json"):
            assert (fold / file).is_file(), fold / file
    return f"{', '.join(fold.name for fold in folds)}, validated"


def told(work: Path, said: str) -> str:
    assert all(label in said for label in ("bone", "muscle", "fat")), said
    return "a Dice for each label"


def best_found(work: Path, said: str) -> str:
    best = json.loads((work / "best.json").read_text())
    assert best["dataset"] == DATASET, best
    return f"validation Dice {best['dice']:.3f}"


def exported(work: Path, said: str) -> str:
    spec = json.loads((work / "bundle" / "ctseg.json").read_text())
    assert spec["parity"]["state"] == "proven", spec["parity"]
    assert [label["name"] for label in spec["labels"]] == ["background", "bone", "muscle", "fat"], spec["labels"]
    return "proven"


def built(work: Path, said: str) -> str:
    spec = json.loads((work / "models" / "body" / "ctseg.json").read_text())
    assert spec["parity"]["state"] == "proven", spec["parity"]
    assert (work / "models" / "body_scan" / "config.pbtxt").is_file()
    return "proven"


def segmented(work: Path, said: str) -> str:
    scans = sorted((work / "new_cts").iterdir())
    for scan in scans:
        labels, image = nib.load(work / "labels" / scan.name), nib.load(scan)
        assert labels.shape == image.shape, scan
        assert np.allclose(labels.affine, image.affine, atol=1e-4), scan
        assert {0, 2} <= set(np.unique(labels.dataobj)) <= {0, 1, 2, 3}, scan  # a network that learned finds muscle
    return f"{len(scans)} label maps on their scans' grids"


def evaluated(work: Path, said: str) -> str:
    cases = read_evaluation(work / "labels" / "evaluation.json").cases
    assert len(cases) == 2, cases
    for case in cases:
        found, reference = (
            np.asarray(nib.load(work / folder / f"{case.case}.nii.gz").dataobj) for folder in ("labels", "new_labels")
        )
        for value, name in enumerate(("bone", "muscle", "fat"), start=1):
            both = np.count_nonzero((found == value) & (reference == value))
            either = np.count_nonzero(found == value) + np.count_nonzero(reference == value)
            assert np.isclose(case.labels[name].dice, 2 * both / either if either else np.nan, equal_nan=True), case
    means = {name: float(np.nanmean([case.labels[name].dice for case in cases])) for name in cases[0].labels}
    return "Dice " + ", ".join(f"{name} {value:.2f}" for name, value in means.items())


def reported(work: Path, said: str) -> str:
    page = work / "labels" / "report" / "index.html"
    text = page.read_text(encoding="utf-8")
    cases = [scan.name.removesuffix(".nii.gz") for scan in (work / "new_cts").iterdir()]
    assert all(case in text for case in cases), cases
    assert all((page.parent / "cases" / f"{case}.html").is_file() for case in cases), cases
    return f"{page.relative_to(work)}, {len(text) / 1e6:.1f} MB"


CHECKS: dict[str, Callable[[Path, str], str]] = {
    "dataset create": created,
    "dataset verify": verified,
    "dataset overview": looked_at,
    "plan": planned,
    "train": trained,
    "results": told,
    "find-best": best_found,
    "export": exported,
    "build": built,
    "predict": segmented,
    "evaluate": evaluated,
    "report": reported,
}


def typed(work: Path, command: list[str]) -> str:
    """Run a command as somebody types it; return what it said, which is shown too."""
    environment = {
        **os.environ,
        **{name: str(work / name) for name in FOLDERS},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    said = []
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"    {line}", end="", flush=True)
            said.append(line)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit status {process.returncode}")
    return "".join(said)


def main() -> int:
    """Type all commands, and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("walk_output"), help="made anew; default: %(default)s")
    parser.add_argument(
        "--begin", type=int, default=1, metavar="N", help="go on with the N-th command of an older walk"
    )
    args = parser.parse_args()
    work = args.output.resolve()
    commands = commands_of(PAGE.read_text(encoding="utf-8"))
    if args.begin == 1:
        shutil.rmtree(work, ignore_errors=True)
        for name in FOLDERS:
            (work / name).mkdir(parents=True)
        cut_pieces(work)
    rows = []
    for number, command in enumerate(commands[args.begin - 1 :], start=args.begin):
        print(f"\n{number:2} {shlex.join(command)}", flush=True)
        start = time.monotonic()
        said = typed(work, command)
        rows.append((number, time.monotonic() - start, " ".join(command[:3]), check(work, command, said)))
    print()
    for number, seconds, name, found in rows:
        print(f"{number:2} {seconds:6.1f} s  {name:24}  {found}")
    print(f"{len(rows)} commands in {sum(row[1] for row in rows):.0f} s; look at {work / 'labels/report/index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
