"""One release's models, exported, built, served and compared, in a process with that release's folders.

``python -m scripts.compatibility.proof OUTPUT VERSION``
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np

from ctseg.cli.main import main as ctseg
from ctseg.deploy.recipe_bundle import RECIPE_PARITY_NAME
from ctseg.documents import Document
from scripts.compatibility import inside
from scripts.compatibility.data import NAME, scan_of
from scripts.compatibility.environment import Workplace
from scripts.compatibility.kinds import NNUNETS, Kind, kinds_of
from scripts.compatibility.training import (
    archive_of,
    members_of,
    own_prediction,
    postprocessing_of,
    totalsegmentator_folder,
)
from scripts.gpu_proof.float32_reference import Float32Predictor

NEWEST = version("nnunetv2")
"""The nnU-Net that is installed with ctseg: the reference."""
MOST_DIFFERING = 1e-4
"""Share of the voxels that may differ from float32 nnU-Net: what `docs/recipes.md` says of a cascade's second stage."""


class Finding(Document):
    """What came of a kind of model.

    Attributes:
        version: Of the nnU-Net that trained it.
        kind: Its name.
        trained: Trainer, plans and configurations.
        gate: ``proven`` where every network, and a recipe as a whole, passed export's and build's gates.
        voxels: Of the scan.
        foreground: Voxels that float32 nnU-Net labels.
        differing: Voxels whose label is not that of the newest nnU-Net in float32.
        differing_own: Voxels whose label is not what the release itself predicts.
        own_from_float32: Voxels that differ between the release's own prediction and the newest nnU-Net in float32.
        refused: Why nothing was exported, as it is expected.
        problem: What should have come, and did not.
    """

    version: str
    kind: str
    trained: str
    gate: str = ""
    voxels: int = 0
    foreground: int = 0
    differing: int = 0
    differing_own: int = 0
    own_from_float32: int = 0
    refused: str = ""
    problem: str = ""


class UnexpectedError(Exception):
    """Something that is said to work does not.

    Attributes:
        said: By ctseg, where one of its commands failed.
    """

    def __init__(self, what: str, *, said: str = "") -> None:
        super().__init__(what)
        self.said = said


def main() -> int:
    """Prove the kinds that are not proven yet; return 1 where one has a problem."""
    output, version = Path(sys.argv[1]), sys.argv[2]
    place = Workplace(next(item for item in NNUNETS if item.version == version), output)
    problems = 0
    for kind in kinds_of(place.nnunet):
        finding = finding_of(place, kind)
        if finding is None or finding.problem:
            finding = _found(place, kind)
            file = _file_of(place, kind)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(finding.model_dump_json(indent=1), encoding="utf-8")
        problems += bool(finding.problem)
        print(f"        {told(finding)}", flush=True)
    return 1 if problems else 0


def told(finding: Finding) -> str:
    """Return a finding in one line."""
    if finding.problem:
        return f"{finding.kind}: PROBLEM: {finding.problem}"
    if finding.refused:
        return f"{finding.kind}: refused, as it should be"
    return (
        f"{finding.kind}: {finding.gate}; of {finding.foreground} labelled voxels {finding.differing} differ from "
        f"float32 nnU-Net {NEWEST}, {finding.differing_own} from {finding.version}'s own prediction"
    )


def finding_of(place: Workplace, kind: Kind) -> Finding | None:
    """Return what was found before."""
    file = _file_of(place, kind)
    return Finding.model_validate_json(file.read_bytes()) if file.exists() else None


def _file_of(place: Workplace, kind: Kind) -> Path:
    return place.folder / "findings" / f"{kind.key}.json"


def _found(place: Workplace, kind: Kind) -> Finding:
    finding = Finding(
        version=place.nnunet.version,
        kind=kind.name,
        trained=kind.trained_by,
    )
    try:
        if kind.refused is not None:
            return finding.model_copy(update={"refused": _refusal(place, kind)})
        return finding.model_copy(update=_compared(place, kind))
    except UnexpectedError as error:
        return finding.model_copy(update={"problem": str(error)})


def _refusal(place: Workplace, kind: Kind) -> str:
    """Return the words by which an export is refused, after nnU-Net has refused the model too."""
    with contextlib.suppress(TypeError, AttributeError, KeyError):
        _reference(place, kind)
        raise UnexpectedError(f"nnU-Net {NEWEST} takes it, so ctseg should")
    said = _refused(place, kind, trust=True)
    if kind.refused not in said:
        raise UnexpectedError(f"expected to be refused with {kind.refused!r}, found: {said}")
    return said.split(": ", 2)[-1]  # without the error's and the model's names


def _compared(place: Workplace, kind: Kind) -> dict[str, int | str]:
    if kind.trusted:
        said = _refused(place, kind, trust=False)
        if "--trust_checkpoint" not in said:
            raise UnexpectedError(f"expected to be told of --trust_checkpoint, found: {said}")
    bundle = _export(place, kind, trust=kind.trusted)
    repository = place.folder / "repositories" / kind.key
    shutil.rmtree(repository, ignore_errors=True)
    _ctseg(place, kind, "build", bundle, "--repository", repository)
    labels = place.folder / "labels" / kind.key
    shutil.rmtree(labels, ignore_errors=True)
    scan = scan_of(place.raw)
    _ctseg(place, kind, "predict", "-i", scan, "-o", labels, "-m", kind.key, "--repository", repository)
    (file,) = labels.glob("*.nii.gz")
    found = np.asarray(nibabel.load(file).dataobj).T
    reference, own = _reference(place, kind), np.load(own_prediction(place, kind))
    differing = int(np.sum(found != reference))
    if differing > MOST_DIFFERING * reference.size:
        raise UnexpectedError(f"{differing} of {reference.size} voxels differ from float32 nnU-Net {NEWEST}")
    return {
        "gate": _gate(bundle, repository),
        "voxels": reference.size,
        "foreground": int(np.count_nonzero(reference)),
        "differing": differing,
        "differing_own": int(np.sum(found != own)),
        "own_from_float32": int(np.sum(own != reference)),
    }


def _export(place: Workplace, kind: Kind, *, trust: bool) -> Path:
    bundle = place.folder / "bundles" / kind.key
    shutil.rmtree(bundle, ignore_errors=True)
    words: list[str | Path] = ["export", "-o", bundle, "--name", kind.key]
    if kind.source == "totalsegmentator":
        words += ["-i", totalsegmentator_folder(place), "--cases", scan_of(place.raw)]
    else:
        first = kind.members[0]
        words += ["-c", *(member.configuration for member in kind.members)]
        if kind.source == "archive":
            words += ["-i", archive_of(place, kind), "--cases", scan_of(place.raw)]
        else:
            words += ["-i", place.results / NAME, "-tr", first.trainer, "-p", first.plans]
    _ctseg(place, kind, *words, *(["--trust_checkpoint"] if trust else []))
    return bundle


def _refused(place: Workplace, kind: Kind, *, trust: bool) -> str:
    try:
        _export(place, kind, trust=trust)
    except UnexpectedError as error:
        return error.said
    raise UnexpectedError("the export should have been refused, and was not")


def _ctseg(place: Workplace, kind: Kind, *words: str | Path) -> None:
    """Run a command of ctseg.

    Raises:
        UnexpectedError: It failed.
    """
    with _kept(place, f"{kind.key}_{words[0]}") as log:
        status = ctseg([str(word) for word in words])
    if status:
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"]
        said = lines[-1][:600]
        raise UnexpectedError(f"ctseg {words[0]}: exit status {status}: {said}", said=said)


@contextlib.contextmanager
def _kept(place: Workplace, name: str) -> Iterator[Path]:
    """Keep what is printed in a file instead."""
    log = place.folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield log


def _reference(place: Workplace, kind: Kind) -> np.ndarray:
    """Return the labels of the newest nnU-Net in float32."""
    file = place.folder / "reference" / own_prediction(place, kind).name
    file.parent.mkdir(parents=True, exist_ok=True)
    with _kept(place, f"{kind.key}_reference"):
        inside.predict(
            scan_of(place.raw),
            output=str(file),
            members=members_of(place, kind),
            postprocessing=postprocessing_of(place, kind),
            predictor_kind=Float32Predictor,
        )
    return np.load(file)


def _gate(bundle: Path, repository: Path) -> str:
    """Return the state of all that was built and, of a recipe, of the whole.

    Raises:
        UnexpectedError: Something is not proven.
    """
    specs = [json.loads(file.read_text(encoding="utf-8")) for file in repository.glob("*/ctseg.json")]
    states = {spec["parity"]["state"] for spec in specs}
    if (bundle / RECIPE_PARITY_NAME).exists():
        checks = json.loads((bundle / RECIPE_PARITY_NAME).read_text(encoding="utf-8"))["checks"]
        states |= {"unproven" if check["problems"] else "proven" for check in checks} or {"unproven"}
    if states != {"proven"}:
        raise UnexpectedError(f"expected every network to be proven, found {sorted(states)}")
    return "proven"


if __name__ == "__main__":
    sys.exit(main())
