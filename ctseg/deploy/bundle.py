"""The bundle: what export writes and build reads, one folder for one trained model.

``ctseg.json`` (spec of the FP32 network), ``model.onnx``, ``model.<precision>.onnx``, beside each ``<name>.data`` with
its weights if they are too large for one file, ``parity.json``, ``parity.md`` (for people), ``parity/`` and
``parity_phantom/`` (patches and one case with PyTorch's logits, of real scans and of a phantom). The former stays with
who exported: a bundle works without either, and carries no patient without the first.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctseg.deploy.onnx_file import sha256_of_network
from ctseg.deploy.parity_data import ParityData
from ctseg.deploy.parity_report import ParityReport, Variant
from ctseg.errors import OutputError, SetupError, SpecError
from ctseg.files.atomic import appearing
from ctseg.files.folders import require_writable
from ctseg.model_spec import SPEC_NAME, ModelSpec, ParitySet, Precision
from ctseg.recipe import RECIPE_NAME
from ctseg.serving.entries import Backend

PARITY_NAME = "parity.json"
PAGE_NAME = "parity.md"
PARITY_SETS: Mapping[ParitySet, str] = {"scans": "parity", "phantom": "parity_phantom"}
"""Names of the folders with what networks are compared on."""
NO_PHANTOM = (
    "an older ctseg wrote this bundle, without parity_phantom/: an image that carries it would carry voxels of "
    "patients, and is refused"
)


def model_name(precision: Precision) -> str:
    """Return the name of the ONNX file whose graph has a precision."""
    return "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"


def source_precision(precision: Precision, backend: Backend) -> Precision:
    """Return the precision of the graph that a backend takes: a CPU's runtime rounds the FP32 graph to BF16 itself."""
    return "fp32" if precision == "bf16" and backend != "tensorrt" else precision


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: Where it lies.
        spec: Spec of the FP32 network.
        report: What the parity gate found.
    """

    folder: Path
    spec: ModelSpec
    report: ParityReport

    def variant(self, precision: Precision) -> Variant:
        """Return the model file whose graph has a precision, and what is known about it.

        Raises:
            SpecError: The bundle has none, or the file, or weights beside it, are not what was checked.
        """
        file = model_name(precision)
        for variant in self.report.variants:
            if variant.file == file:
                path = self.folder / file
                _require_unchanged(path, variant.sha256)
                return variant
        having = ", ".join(variant.precision for variant in self.report.variants)
        raise SpecError(
            f"{self.folder}: the bundle has no {precision} network, only {having}: export it with that precision",
            settings=("precision",),
        )

    def spec_of(self, precision: Precision, backend: Backend = "tensorrt") -> ModelSpec:
        """Return the spec of a precision's network, with its parity figures.

        Args:
            precision: Of the network that is served.
            backend: What runs it.

        Raises:
            SpecError: The bundle has no such network.
        """
        variant = self.variant(source_precision(precision, backend))
        parity = next(iter(variant.checks)).as_parity(detail=variant.kept_fp32) if variant.checks else self.spec.parity
        output = self.spec.output.model_copy(update={"dtype": variant.output_dtype})
        return self.spec.model_copy(update={"precision": precision, "output": output, "parity": parity})

    @property
    def parity_sets(self) -> tuple[ParitySet, ...]:
        """What is there to compare networks on."""
        return tuple(name for name, folder in PARITY_SETS.items() if (self.folder / folder).is_dir())

    def parity_data(self) -> tuple[ParityData, ...]:
        """Return patches and case of the scans, of the phantom, or of both, as far as they are there.

        Raises:
            SpecError: Both are missing, or one is broken.
        """
        if not self.parity_sets:
            raise SpecError(
                f"{self.folder}: found neither {' nor '.join(f'{name}/' for name in PARITY_SETS.values())}, with which "
                "what is built would be proven: export the model again"
            )
        sources: Mapping[ParitySet, str] = {"scans": self.report.data, "phantom": self.report.phantom}
        return tuple(
            ParityData.read(self.folder / PARITY_SETS[name], name, source=sources[name]) for name in self.parity_sets
        )


def _require_unchanged(path: Path, sha256: str) -> None:
    refusal = f"{path}: is missing or not the file that {PARITY_NAME} describes: export again"
    try:
        is_same = path.is_file() and sha256_of_network(path) == sha256
    except SpecError as error:  # no ONNX file any more, or the weights beside it are not there
        raise SpecError(f"{refusal} ({error})") from error
    if not is_same:
        raise SpecError(refusal)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle.

    Raises:
        SpecError: A file is missing, broken, or belongs to another model.
    """
    path = folder / SPEC_NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SpecError(
            f"{path}: cannot be read ({error.strerror}); is {folder} a bundle of `ctseg export`?"
        ) from error
    spec = ModelSpec.from_json(text, source=str(path))
    report = ParityReport.read(folder / PARITY_NAME)
    if report.network_sha256 != spec.network_sha256:
        raise SpecError(f"{folder}: {PARITY_NAME} is about another network than {SPEC_NAME}: export the model again")
    return Bundle(folder=folder, spec=spec, report=report)


def write_bundle(folder: Path, fill: Callable[[Path], None]) -> Bundle:
    """Write a bundle whole or not at all; a bundle that is there is replaced.

    Args:
        folder: Where it shall lie.
        fill: Writes the files into the folder that it is given.

    Raises:
        SetupError: ``folder`` is there and is no bundle.
        OutputError: It cannot be written.
    """
    check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with appearing(folder) as part:
            fill(part)
    except OSError as error:
        free = f"; {shutil.disk_usage(folder.parent).free >> 20} MiB are free there" if folder.parent.is_dir() else ""
        raise OutputError(f"{folder}: cannot be written: {error}{free}") from error
    return read_bundle(folder)


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that is neither missing, empty nor a bundle, or lies where nothing may be written.

    Raises:
        SetupError: It holds something else.
        OutputError: It cannot be written.
    """
    is_bundle = (folder / SPEC_NAME).is_file() or (folder / RECIPE_NAME).is_file()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_bundle)):
        raise SetupError(f"{folder}: is there and is no bundle: choose another folder", settings=("output",))
    require_writable(folder.parent)
