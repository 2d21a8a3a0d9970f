"""The stand-in bases, and the images built on them."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.check_images.machine import ROOT, Machine

PACKAGES = "ca-certificates,python3,python3-pip,python3-venv,libpython3.11"


def pip_settings(scratch: Path) -> list[str]:
    """Return the mounts that let pip in a build find packages as it does here."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    wanted = ("index-url", "extra-index-url", "find-links", "cert", "trusted-host", "default-timeout")
    lines = ["[global]", *(f"{name} = {settings[name]}" for name in wanted if name in settings)]
    (scratch / "pip.conf").write_text("\n".join(lines) + "\n")
    mounts = [f"{scratch}/pip.conf:/etc/pip.conf:ro"]
    folders = f"{settings.get('find-links', '')} {settings.get('extra-index-url', '')} {settings.get('index-url', '')}"
    for word in folders.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            kept = path.parent if path.name == "simple" else path  # an index refers to the files beside it
            mounts.append(f"{kept}:{kept}:ro")
    if "cert" in settings:
        mounts.append(f"{settings['cert']}:{settings['cert']}:ro")
    return [word for mount in mounts for word in ("-v", mount)]


def make_base(machine: Machine) -> None:
    """Make a Debian of the machine's own mirror."""
    if not machine.run("podman", "image", "exists", "localhost/ci/debian", fails=None).returncode:
        return
    sources = next(
        path
        for path in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
        if path.is_file() and path.stat().st_size
    )
    archive = machine.scratch / "base.tar"
    machine.run(
        "mmdebstrap", "--quiet", "--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"',
        f"--include={PACKAGES}", "bookworm", archive, sources,
    )  # fmt: skip
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    machine.podman("import", "-q", "--change", path, archive, "localhost/ci/debian")
    archive.unlink()


def build_image(machine: Machine, mounts: Sequence[str], tag: str, file: str, base: str, *words: str) -> None:
    """Build an image from a copy of what git knows and does not ignore."""
    machine.podman(
        "build", "--format", "docker", "--network", "host", "--pull=never", *mounts,
        "--build-arg", f"BASE_IMAGE=localhost/ci/{base}", *words, "-t", f"localhost/ci/{tag}",
        "-f", file, machine.scratch / "context",
    )  # fmt: skip


def make_context(scratch: Path) -> None:
    """Copy the files of the images, so that a bundle can be put beside them."""
    context = scratch / "context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {".dockerignore", *(rule[1:] for rule in rules if rule.startswith("!"))}
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        top = name.partition("/")[0]
        if name and (ROOT / name).is_file() and (top in sent or top.startswith("Dockerfile")):
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    shutil.copy(Path(__file__).with_name("Dockerfile.triton"), context / "Dockerfile.triton")
