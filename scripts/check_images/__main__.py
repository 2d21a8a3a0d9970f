"""Builds both images on stand-in bases and walks the user's road through them; what ``make images`` runs.

No registry is needed: the stand-ins are made of the machine's own Debian mirror, and pip's own settings are
mounted into the build. Needs root, and from apt: podman runc netavark aardvark-dns iptables mmdebstrap.
Prints one line for each claim that was checked; ends with status 1 at the first that does not hold, with the
logs. Whatever happens, no container, mount, firewall rule or file stays behind (but with ``--scratch``).

Usage, in the root of the repository: ``python -m scripts.check_images``.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

from scripts.check_images.claims import ClaimError, claim, step
from scripts.check_images.cleaning import chains, clean
from scripts.check_images.data import make_data
from scripts.check_images.images import build_image, make_base, make_context, pip_settings
from scripts.check_images.machine import SERVER_USER, Machine
from scripts.check_images.roads import check_refusals, serve_baked, serve_mounted
from scripts.check_images.training import embedded_labels, train_and_export

NEEDED = ("podman", "runc", "mmdebstrap", "iptables", "openssl")
LONGEST_S = 1800


def main() -> int:
    """Walk the road; clean up whatever happens; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="keep images and logs there, so that the next run begins warm")
    args = parser.parse_args()
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing or os.geteuid():
        print(
            f"`make images` needs root and {', '.join(missing) or 'nothing else'}; Debian and Ubuntu: "
            "apt-get install podman runc netavark aardvark-dns iptables mmdebstrap openssl",
            file=sys.stderr,
        )
        return 2

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, stop)
    signal.alarm(LONGEST_S)
    scratch = args.scratch or Path(tempfile.mkdtemp(prefix="ctseg-images-"))
    scratch.mkdir(parents=True, exist_ok=True)
    machine = Machine.prepare(scratch.resolve())
    had_chains = any(chains(table) for table in ("nat", "filter"))
    try:
        walk(machine, keep=args.scratch is not None)
    except (ClaimError, subprocess.TimeoutExpired) as error:
        print(f"FAILED  {error}", file=sys.stderr)
        for log in sorted(scratch.glob("*.log")):
            if log.name != "commands.log":
                print(f"--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
        return 1
    finally:
        signal.alarm(0)
        clean(machine, had_chains=had_chains, keep=args.scratch is not None)
    step("done; nothing is left running or mounted")
    return 0


def walk(machine: Machine, *, keep: bool) -> None:
    """The whole road."""
    layers = () if keep else ("--layers=false",)  # large layers take longer to store than to make again
    scratch = machine.scratch
    step("stand-in bases")
    mounts = pip_settings(scratch)
    make_base(machine)
    make_context(scratch)
    build_image(machine, mounts, "triton", str(scratch / "context" / "Dockerfile.triton"), "debian")
    step("Dockerfile.train")
    build_image(
        machine, mounts, "train", str(scratch / "context" / "Dockerfile.train"), "debian", *layers,
        "--build-arg", "DEVICE=cpu", "--build-arg", "NNUNET_SOURCE=nnunetv2==2.8.1",
    )  # fmt: skip
    step("Dockerfile.serve")
    serve_file = str(scratch / "context" / "Dockerfile.serve")
    build_image(machine, mounts, "serve", serve_file, "triton", "--target", "mounted")
    for tag in ("train", "serve"):
        user = machine.podman("image", "inspect", "-f", "{{.Config.User}}", f"localhost/ci/{tag}")
        claim(f"the {tag} image is not root's", user == SERVER_USER, user)
    program = ("python3", "-c", "import os; print(os.environ.get('CTSEG_TEST_BASE'))")
    said = machine.podman("run", "--rm", "localhost/ci/serve", *program)
    claim("the entry point of the base goes first", said.endswith("wrapped"), said)
    data = scratch / "data"
    shutil.rmtree(data, ignore_errors=True)
    make_data(data)
    train_and_export(machine, data)
    expected = embedded_labels(machine, data)
    serve_mounted(machine, data, expected)
    serve_baked(machine, data, expected, mounts)
    check_refusals(machine, data)


if __name__ == "__main__":
    sys.exit(main())
