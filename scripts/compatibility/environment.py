"""An environment of its own for each nnU-Net; torch and whatever did not change come from this one."""

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from scripts.compatibility.kinds import NnUNet
from scripts.compatibility.own_network import FORMS

OWN_FILE = "own_network_trainer.py"


@dataclass(frozen=True)
class Workplace:
    """Where the work on one nnU-Net lies.

    Attributes:
        nnunet: The release.
        output: Of the whole command.
    """

    nnunet: NnUNet
    output: Path

    @property
    def folder(self) -> Path:
        """All of this release."""
        return self.output / self.nnunet.version

    @property
    def raw(self) -> Path:
        """``nnUNet_raw``, the same for all."""
        return self.output / "raw"

    @property
    def preprocessed(self) -> Path:
        """``nnUNet_preprocessed``."""
        return self.folder / "preprocessed"

    @property
    def results(self) -> Path:
        """``nnUNet_results``."""
        return self.folder / "results"

    @property
    def trainers(self) -> Path:
        """``nnUNet_extTrainer``, which newer nnU-Nets read."""
        return self.folder / "trainers"

    @property
    def python(self) -> Path:
        """The release's own Python."""
        return self.output / "environments" / self.nnunet.version / "bin" / "python"

    def variables(self) -> dict[str, str]:
        """Return nnU-Net's variables: its folders, few processes, nothing compiled."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": str(self.trainers),
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
        }

    def run_inside(self, *words: str | Path, log: Path) -> None:
        """Run the release's Python, its lines that begin with spaces shown, all of them kept.

        Raises:
            RuntimeError: It failed.
        """
        variables = {
            **os.environ,
            **self.variables(),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # torch < 2.6 read whole pickles, and so do old nnU-Nets
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("w", encoding="utf-8") as kept,
            subprocess.Popen(
                [self.python, *words], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            assert process.stdout is not None  # noqa: S101 (it was asked for)
            for line in process.stdout:
                kept.write(line)
                if line.startswith("        "):
                    print(line.rstrip(), flush=True)
        if process.returncode:
            end = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
            raise RuntimeError(f"nnU-Net {self.nnunet.version} failed, {log} has all of it:\n{end}")


def make_environment(place: Workplace) -> None:
    """Install a release and its companions, without their dependencies, unless that is done."""
    folder = place.python.parents[1]
    done = folder / "ready"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
        wanted = [f"nnunetv2=={place.nnunet.version}", *place.nnunet.companions]
        pip = [sys.executable, "-m", "pip", "--python", place.python, "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", *wanted], check=True)
        own = next(folder.glob("lib/python*/site-packages"))
        (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        done.touch()
    source = FORMS[place.nnunet.own_network]
    inside = next(folder.glob("lib/python*/site-packages/nnunetv2/training/nnUNetTrainer"))
    place.trainers.mkdir(parents=True, exist_ok=True)
    for target in (inside, place.trainers):  # old nnU-Nets look for trainers in their own tree only
        (target / OWN_FILE).write_text(source, encoding="utf-8")
