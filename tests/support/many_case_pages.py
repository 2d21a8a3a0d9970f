"""An output folder of many cases, the demo's three patients over and over, and how fast its index opens.

python -m tests.support.many_case_pages --cases 200 --output FOLDER
"""

import argparse
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from ctseg.evaluate.folder import evaluate_folder
from ctseg.evaluate.pages.run import FOLDER, INDEX, write_run_pages
from tests.support.browser import visiting
from tests.support.run_pages import RunFolder

DEMO_DATA = Path(__file__).parents[2] / "examples" / "demo_data"


def many_cases(root: Path, count: int) -> tuple[RunFolder, Path]:
    """Make the folder of a run and of references; label maps miss their references by a few voxels."""
    folder, references = RunFolder(root, labels={"tumour": (1,)}, model="sarcoma"), root / "references"
    references.mkdir()
    patients = sorted((DEMO_DATA / "labels").glob("*.nii.gz"))
    for number in range(count):
        path = patients[number % len(patients)]
        scan = nib.load(DEMO_DATA / "images" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        labels = np.asarray(nib.load(path).dataobj).astype(np.uint8).T
        name = f"patient_{number:03d}"
        found = np.roll(labels, (number % 3, number % 7), axis=(0, 1))
        warnings = ("cut by the edge of the scan: tumour (inferior 3.6 cm2)",) if number % 4 == 0 else ()
        folder.add(name, np.asarray(scan.dataobj).T, found, affine=scan.affine, warnings=warnings)
        nib.save(nib.Nifti1Image(labels.T, scan.affine), references / f"{name}.nii.gz")
    return folder, references


def main() -> int:
    """Make the folder and its pages, and open the index five times; print sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    args = parser.parse_args()
    folder, references = many_cases(args.output, args.cases)
    evaluation = evaluate_folder(folder.output, references)
    began = time.perf_counter()
    write_run_pages(folder.output, folder.report, cases=folder.cases, evaluation=evaluation, references=references)
    seconds = time.perf_counter() - began
    index = folder.output / FOLDER / INDEX
    print(f"{args.cases} cases: pages in {seconds:.0f} s; index {index.stat().st_size / 1e6:.2f} MB: {index}")
    with visiting(1400, 1000) as visit:
        for _ in range(5):
            visit.open(index)
            loaded, painted = visit.page.evaluate(
                """() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done([
                  performance.getEntriesByType('navigation')[0].loadEventEnd,
                  performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN]))))"""
            )
            print(f"load event {loaded:.0f} ms, first paint {painted:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
