"""Nothing stays behind: no container, mount, firewall rule or file."""

import shlex
import shutil
import subprocess
from pathlib import Path

from scripts.check_images.machine import Machine


def clean(machine: Machine, *, had_chains: bool, keep: bool) -> None:
    """Remove containers, volumes, mounts, firewall chains and, unless kept, all files."""
    for words in (("rm", "-f", "-a", "-t", "2"), ("volume", "prune", "-f")):
        subprocess.run(["podman", *words], env=machine.environment, capture_output=True, check=False)
    if not keep:
        subprocess.run(["podman", "rmi", "-f", "-a"], env=machine.environment, capture_output=True, check=False)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((path for path in mounts if path.startswith(f"{machine.scratch}/")), reverse=True):
        subprocess.run(["umount", mount], capture_output=True, check=False)
    if not had_chains:
        remove_chains()
    if not keep:
        shutil.rmtree(machine.scratch, ignore_errors=True)


def chains(table: str) -> list[str]:
    """Return the rules that netavark made in a table of the firewall."""
    listed = subprocess.run(["iptables", "-t", table, "-S"], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "NETAVARK" in line]


def remove_chains() -> None:
    """Remove what netavark leaves in the firewall."""
    for table in ("nat", "filter"):
        rules = chains(table)
        for rule in reversed([rule for rule in rules if rule.startswith("-A")]):
            subprocess.run(["iptables", "-t", table, "-D", *shlex.split(rule)[1:]], capture_output=True, check=False)
        for rule in rules:
            if rule.startswith("-N"):
                subprocess.run(["iptables", "-t", table, "-X", rule.split()[1]], capture_output=True, check=False)
