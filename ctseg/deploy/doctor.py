"""What is wrong with this setup, and what to do about it."""

import contextlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import CtsegError, ModelNotFoundError, SetupError, SpecError
from ctseg.files.digests import sha256_of_files
from ctseg.files.folders import why_no_folder
from ctseg.nnunet.variables import VARIABLES

Level = Literal["ok", "note", "problem"]

_LAYERS = {
    "client": ("numpy", "numba", "nibabel", "tritonclient", "pydantic"),
    "serve": ("onnxruntime",),
    "deploy": ("torch", "nnunetv2", "onnx", "onnxscript", "onnxslim"),
    "train": ("torch", "nnunetv2", "monai", "einops"),
    "itk": ("SimpleITK",),
    "dicom": ("pydicom", "highdicom", "SimpleITK", "requests"),
}
"""What each layer needs; but for the client's they are extras of the package."""
_LEAST_SHM_BYTES = 256 << 20
_LEAST_DISK_BYTES = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What.
        level: ``ok``, ``note`` (nothing is wrong, but know it) or ``problem``.
        found: What was found.
        advice: What to do; empty where nothing needs to be done.
        settings: Names of the parameters of :func:`examine` that would help, as the command line has them.
    """

    subject: str
    level: Level
    found: str
    advice: str = ""
    settings: tuple[str, ...] = ()


def examine(*, repository: Path | None = None, urls: Sequence[str] = (), bundle: Path | None = None) -> list[Finding]:
    """Look at the whole setup.

    Args:
        repository: A model repository to look into.
        urls: Running servers to ask.
        bundle: What a model was built from: the servers' answers, or without ``urls`` those of a server that
            is started on ``repository``, are compared with PyTorch's.

    Returns:
        The findings, in the order in which they were made.
    """
    findings = [*_installation(), *_machine(), *_gpu(), *_server()]
    if repository is not None:
        findings += _repository(repository)
    for url in urls:
        findings += _running_server(url, repository)
        if bundle is not None:
            findings += _live_parity(url, bundle)
    if bundle is not None:
        findings += _bundle(bundle)
    if bundle is not None and not urls:
        findings += _embedded_parity(repository, bundle)
    return findings


def _installation() -> Iterator[Finding]:
    yield Finding("ctseg", "ok", f"{importlib.metadata.version('ctseg')}, Python {sys.version.split()[0]}")
    for layer, packages in _LAYERS.items():
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            level: Level = "problem" if layer == "client" else "note"
            extra = "" if layer == "client" else f" with its extra {layer!r}"
            advice = f"if you need it, install ctseg{extra}, as docs/install.md shows"
            yield Finding(f"layer {layer}", level, f"not installed: {', '.join(missing)}", advice)
        else:
            yield Finding(f"layer {layer}", "ok", ", ".join(f"{name} {_version(name)}" for name in packages))

    for variable in VARIABLES:
        value = os.environ.get(variable)
        if value and not Path(value).is_dir():
            found = f"{value}: {why_no_folder(Path(value))}"
            yield Finding(variable, "problem", found, "create it, or set the variable to another")
        elif value:
            yield Finding(variable, "ok", value)


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Return which distributions each module may come from; looking at all that is installed takes a while."""
    return importlib.metadata.packages_distributions()


def _version(module: str) -> str:
    names = _distributions().get(module, [module])
    try:
        return importlib.metadata.version(names[0])
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _machine() -> Iterator[Finding]:
    from ctseg.deploy.runtimes import available_runtimes, describe_runtime

    cpus = usable_cpus()
    yield Finding("CPU", "ok", f"{cpus} CPUs for this process")
    runtimes = available_runtimes()
    if runtimes:
        advice = (
            ""
            if "openvino" in runtimes
            else "OpenVINO is a second one, which `ctseg build` would try (docs/install.md)"
        )
        found = ", ".join(describe_runtime(name) for name in runtimes)
        yield Finding("CPU runtimes", "note" if advice else "ok", found, advice)
    else:
        yield Finding("CPU runtimes", "note", "none", "to serve on a CPU, install the extra 'serve' (docs/install.md)")
    shm = Path("/dev/shm")  # noqa: S108 (the folder itself is looked at)
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        if free < _LEAST_SHM_BYTES:
            yield Finding(
                "shared memory",
                "problem",
                f"{free >> 20} MiB free in {shm}; the python backend needs {_LEAST_SHM_BYTES >> 20} MiB and more",
                "in a container: --shm-size 1g, or an emptyDir with medium Memory",
            )
        else:
            yield Finding("shared memory", "ok", f"{free >> 20} MiB free in {shm}")


def _gpu() -> Iterator[Finding]:
    from ctseg.deploy.cuda_driver import CudaDriver
    from ctseg.deploy.server_tensorrt import library_version, require_same_tensorrt, server_library
    from ctseg.deploy.tensorrt_plan import load_tensorrt

    try:
        gpu = CudaDriver().gpu()
    except SetupError as error:
        yield Finding("GPU", "note", str(error), "nothing, if models run on the CPU, by the python backend")
    else:
        memory = gpu.memory_bytes / 2**30
        found = f"{gpu.name}, compute capability {gpu.compute_capability}, {memory:.0f} GiB, CUDA {gpu.driver}"
        yield Finding("GPU", "ok", found)
    try:
        trt = load_tensorrt()
    except SetupError as error:
        yield Finding("TensorRT", "note", str(error), "nothing, if no TensorRT plan is built here")
        return
    library = server_library()
    if library is None:
        advice = "build plans in the serving image, or tell `ctseg build` what the server loads"
        yield Finding("TensorRT", "note", f"Python has {trt.__version__}; no libnvinfer of a server here", advice)
        return
    try:
        version = library_version(library)
        require_same_tensorrt(trt, version)
    except SetupError as error:
        yield Finding("TensorRT", "problem", str(error), "install the same version in Python as the server loads")
    else:
        yield Finding("TensorRT", "ok", f"{trt.__version__}, as the server's {library}")


def _server() -> Iterator[Finding]:
    from ctseg.serving.installation import find_server

    try:
        installation = find_server()
    except SetupError as error:
        yield Finding("tritonserver", "note", str(error), "nothing, if a server runs elsewhere", ("urls",))
    else:
        yield Finding(
            "tritonserver",
            "note",
            f"{installation.source} ({installation.binary})",
            "for this machine only; in production use Dockerfile.serve",
        )


def _repository(folder: Path) -> Iterator[Finding]:
    from ctseg.predict.whole_scan import scan_entry
    from ctseg.serving.entries import is_recipe, list_models, read_entry, takes_scans
    from ctseg.serving.scan_entry import check_scan_entry

    try:
        names = list(list_models(folder))
    except CtsegError as error:
        yield Finding(f"repository {folder}", "problem", str(error), "`ctseg build` writes a repository")
        return
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK_BYTES:
        yield Finding(
            f"repository {folder}", "problem", f"{free >> 20} MiB free on its disk", "make room before building"
        )
    yield from _locks(folder)
    for name in names:
        kind, advice = "model", "build the entry again, or remove it"
        try:
            if is_recipe(folder / name):
                kind, advice = "recipe", "write it again, with `ctseg recipe` or by building its bundle, or remove it"
                yield from _recipe(folder, name)
                continue
            if takes_scans(folder / name):
                kind, version = "whole scans", check_scan_entry(folder / name)
                yield Finding(f"{kind} {name}", "ok", f"by version {version} of the model")
                continue
            entry = read_entry(folder / name)
        except SpecError as error:
            yield Finding(f"{kind} {name}", "problem", str(error), advice)
            continue
        for item in entry.versions:
            subject = f"model {name}, version {item.version}"
            spec = item.spec
            voting = f"votes of {spec.votes.folds} folds" if spec.votes else "no votes of folds"
            found = (
                f"{entry.backend}, {spec.precision}, {voting}, digest {spec.digest[:12]}, parity {spec.parity.summary}"
            )
            if spec.parity.state == "proven":
                yield Finding(subject, "ok", found)
            else:
                why = f": {spec.parity.detail}" if spec.parity.detail else ""
                yield Finding(
                    subject,
                    "problem",
                    f"{found}{why}",
                    "export it with real scans and build it again, or use it knowingly",
                )
            yield from _freshness(subject, entry.backend, item.folder, dict(item.build))
        if scan_entry(name) not in names:
            yield Finding(
                f"whole scans of {name}",
                "note",
                f"none are taken: there is no {scan_entry(name)}",
                "`ctseg build` writes it; nothing, if all clients cut windows themselves",
            )


def _recipe(repository: Path, name: str) -> Iterator[Finding]:
    from ctseg.serving.entries import member_versions, read_recipe

    found = read_recipe(repository / name)
    if found is None:
        return
    recipe, version = found
    subject = f"recipe {name}, version {version}"
    members = member_versions(repository, recipe)
    yield Finding(subject, "ok", f"{recipe.step.kind} of {', '.join(members)}, digest {recipe.digest[:12]}")


def _locks(folder: Path) -> Iterator[Finding]:
    from ctseg.files.locking import flock_serves, why_flock_fails

    with contextlib.suppress(OSError):  # nobody writes where this user may not
        if not flock_serves(folder):
            why = why_flock_fails(folder) or "a note in it says so"
            yield Finding(
                f"repository {folder}, locks",
                "note",
                f"flock does not serve there ({why}): writers take turns by files",
                "after a writer was killed on another host, remove the file that its error names",
            )


def _freshness(subject: str, backend: str, folder: Path, build: dict[str, Any]) -> Iterator[Finding]:
    from ctseg.deploy.runtimes import available_runtimes, describe_runtime
    from ctseg.serving.entries import MODEL_NAMES, data_files_of

    if backend == "tensorrt":
        yield from _plan_freshness(subject, build)
        return
    file = folder / MODEL_NAMES[backend]
    beside = [folder / name for name in sorted(data_files_of(build, subject))]
    if build.get("file_sha256", build.get("onnx_sha256")) not in (None, sha256_of_files((file, *beside))):
        yield Finding(
            f"{subject}, network", "problem", f"{file} is not the file that was proven", "build the entry again"
        )
    here = {describe_runtime(name) for name in available_runtimes()}
    proven_with = build.get("runtime")
    if backend == "python" and proven_with and proven_with not in here:
        yield Finding(
            f"{subject}, runtime",
            "note",
            f"proven with {proven_with}; here is {', '.join(sorted(here)) or 'none'}",
            "`ctseg build` proves it with what is here",
        )


def _plan_freshness(subject: str, build: dict[str, Any]) -> Iterator[Finding]:
    from ctseg.deploy.cuda_driver import CudaDriver
    from ctseg.deploy.tensorrt_plan import load_tensorrt

    made_for = f"TensorRT {build.get('tensorrt')} on {build.get('gpu')} ({build.get('compute_capability')})"
    try:
        gpu, version = CudaDriver().gpu(), str(load_tensorrt().__version__)
    except SetupError:
        advice = "run doctor in the serving container, on the GPU"
        yield Finding(f"{subject}, plan", "note", f"built with {made_for}; cannot be compared here", advice)
        return
    if (build.get("tensorrt"), build.get("compute_capability")) == (version, gpu.compute_capability):
        yield Finding(f"{subject}, plan", "ok", f"built with {made_for}, as here")
    else:
        here = f"TensorRT {version} on {gpu.name} ({gpu.compute_capability})"
        yield Finding(
            f"{subject}, plan",
            "problem",
            f"built with {made_for}; here is {here}",
            "build it again here: `ctseg build`",
        )


def _bundle(folder: Path) -> Iterator[Finding]:
    from ctseg.deploy.bundle import NO_PHANTOM, read_bundle

    subject = f"bundle {folder}, images"
    try:
        found = read_bundle(folder).parity_sets
    except CtsegError:  # what is wrong with it is told where it is compared
        return
    if found == ("scans",):
        yield Finding(subject, "note", NO_PHANTOM, "export the model again, if an image shall carry it")
    elif "scans" in found:
        yield Finding(subject, "ok", "parity/ holds patient data and stays here; parity_phantom/ goes into images")
    elif found:
        yield Finding(subject, "ok", "parity_phantom/ alone is there: no voxels of patients")


def _running_server(url: str, repository: Path | None) -> Iterator[Finding]:
    from ctseg.serving.entries import list_models, read_entry, takes_scans
    from ctseg.triton.client import is_ready
    from ctseg.triton.options import ClientOptions
    from ctseg.triton.predictor import connect

    subject = f"server {url}"
    try:
        if not is_ready(url):
            yield Finding(subject, "problem", "it does not answer, or is not ready", "start it, or correct the URL")
            return
    except CtsegError as error:
        yield Finding(subject, "problem", str(error), "start it, or correct the URL")
        return
    yield Finding(subject, "ok", "ready")
    for name in list_models(repository) if repository is not None else ():
        if takes_scans(Path(str(repository)) / name):
            continue
        try:
            with connect([url], name, options=ClientOptions(timeout_s=30, connect_timeout_s=5)) as predictor:
                digest, version = predictor.spec.digest, predictor.identity.version
            newest = read_entry(Path(str(repository)) / name).newest
        except ModelNotFoundError as error:
            yield Finding(
                f"{subject}, {name}", "problem", str(error), "restart the server, or let it watch its repository"
            )
        except CtsegError as error:
            yield Finding(f"{subject}, {name}", "problem", str(error), "see the server's log")
        else:
            same = digest == newest.spec.digest
            found = f"version {version}, digest {digest[:12]}, newest on disk is version {newest.version}"
            advice = "" if same else "restart the server, or let it watch its repository"
            yield Finding(f"{subject}, {name}", "ok" if same else "problem", found, advice)


def _live_parity(
    url: str, bundle_folder: Path, name: str = "", headers: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    from ctseg.deploy.bundle import read_bundle
    from ctseg.deploy.live_proof import check_live
    from ctseg.deploy.parity_report import summary
    from ctseg.triton.options import ClientOptions
    from ctseg.triton.predictor import connect

    subject = f"server {url}, parity"
    try:
        bundle = read_bundle(bundle_folder)
        with connect([url], name or bundle.spec.name, options=ClientOptions(headers=headers or {})) as predictor:
            check = check_live(predictor, bundle, predictor.spec.precision)
    except CtsegError as error:
        yield Finding(subject, "problem", str(error), "see the server's log; name the bundle that it was built from")
        return
    advice = "" if check.passed else "do not use this server's results: build the entry again on it"
    yield Finding(subject, "ok" if check.passed else "problem", summary([check]).strip(), advice)


def _embedded_parity(repository: Path | None, bundle_folder: Path) -> Iterator[Finding]:
    """Compare the models that were built from a bundle, served here for the time of the comparison."""
    from ctseg.deploy.bundle import read_bundle
    from ctseg.serving.entries import list_entries
    from ctseg.serving.server import embedded_server

    subject = f"bundle {bundle_folder}"
    try:
        network = read_bundle(bundle_folder).spec.network_sha256
        entries = [] if repository is None else list_entries(repository)
    except CtsegError as error:
        yield Finding(subject, "problem", str(error), "name a bundle, and a repository that `ctseg build` wrote")
        return
    built = [entry for entry in entries if entry.newest.spec.network_sha256 == network]
    if not built:
        yield Finding(
            subject,
            "problem",
            "no server and no entry of its network to compare",
            "name what serves it, or build it: `ctseg build`",
            ("urls", "repository"),
        )
    for entry in built:
        if entry.backend != "python":
            yield Finding(
                subject,
                "note",
                f"the server here has no {entry.backend} backend",
                "compare a running server",
                ("urls",),
            )
            continue
        try:
            with embedded_server(entry.folder.parent, [entry.name]) as server:
                yield from _live_parity(server.url, bundle_folder, entry.name, server.headers)
        except CtsegError as error:
            yield Finding(f"{subject}, {entry.name}", "problem", str(error), "build the entry again")
