"""Files that strangers put beside scans: modules and programs that say so when they run."""

from pathlib import Path

MODULES = ("numpy", "sitecustomize", "usercustomize", "onnxruntime", "json", "planted")
PROGRAMS = ("tritonserver", "bash", "sh", "python3", "uname")


def plant_modules(folder: Path) -> Path:
    """Plant modules; return the file to which one adds its name when it is imported."""
    record = folder / "ran.txt"
    for name in MODULES:
        text = f"import pathlib\nwith pathlib.Path({str(record)!r}).open('a') as file:\n    file.write('{name}\\n')\n"
        (folder / f"{name}.py").write_text(text)
    return record


def plant_programs(folder: Path) -> Path:
    """Plant programs; return the file to which one adds its name when it is run."""
    record = folder / "ran.txt"
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f"#!/bin/sh\necho {name} >> '{record}'\n")
        program.chmod(0o755)
    return record


def what_ran(record: Path) -> list[str]:
    """Return the names of what has run, in order."""
    return record.read_text().split() if record.exists() else []
