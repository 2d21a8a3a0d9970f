"""The rules of the house that import-linter cannot hold: what is loaded when, who prints, who knows the flags."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ctseg"
CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
BELOW_DEPLOY = CONTRACTS["Below deploy nothing loads the libraries of training and deployment"]
ABOVE = {"cli", "container", "deploy", "train"}

FOREIGN_FLAGS = {
    # tritonserver
    "allow-client-shm", "allow-gpu-metrics", "allow-http", "allow-metrics", "backend-config", "backend-directory",
    "cuda-memory-pool-byte-size", "disable-auto-complete-config", "exit-on-error", "exit-timeout-secs", "grpc-address",
    "grpc-port", "grpc-restricted-protocol", "grpc-root-cert", "grpc-server-cert", "grpc-server-key", "grpc-use-ssl",
    "grpc-use-ssl-mutual", "grpc-infer-allocation-pool-size", "help", "http-address", "http-max-input-size",
    "http-port", "http-restricted-api",
    "load-model", "log-format", "metrics-address", "metrics-port", "model-control-mode", "model-repository",
    "pinned-memory-pool-byte-size", "repository-poll-secs", "strict-readiness",
    # docker and podman
    "gpus", "shm-size", "user",
    # torchrun
    "nproc_per_node",
    # pip, Python's configure
    "no-deps", "enable-shared",
}  # fmt: skip

MAY_PRINT = {
    "container/probe.py",  # a program of its own: what it prints is what a container's health check shows
}


def modules() -> list[str]:
    return sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if "cli" not in file.parts)


def nodes_but_docstrings(module: str) -> Iterator[ast.AST]:
    tree = ast.parse((PACKAGE / module).read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return (node for node in ast.walk(tree) if id(node) not in docstrings)


def loaded_after(program: str, names: list[str]) -> list[str]:
    """Run a program in a fresh process and return which of the modules it has loaded."""
    program += f"\nimport json, sys\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_contract_about_heavy_libraries_names_every_room_below_deploy() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert {f"ctseg.{name}" for name in (rooms | files) - ABOVE} == set(BELOW_DEPLOY["source_modules"])


def test_importing_everything_below_deploy_loads_no_heavy_library() -> None:
    names = [
        module.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for module in modules()
        if module.split("/")[0] not in ABOVE and module not in ("__init__.py", "__main__.py")
    ]
    imports = "\n".join(f"import ctseg.{name}" for name in names if not name.startswith("serving.python_backend"))
    assert loaded_after(imports, [*BELOW_DEPLOY["forbidden_modules"], "ctseg.deploy", "ctseg.train"]) == []


@pytest.mark.parametrize("arrow", BELOW_DEPLOY["ignore_imports"])
def test_library_that_a_function_imports_is_not_loaded_with_its_module(arrow: str) -> None:
    module, library = arrow.split(" -> ")
    assert loaded_after(f"import {module}", [library]) == []


def test_arrows_that_are_allowed_are_named_one_by_one() -> None:
    assert not any("*" in arrow for contract in CONTRACTS.values() for arrow in contract.get("ignore_imports", ()))


def test_files_that_others_load_by_path_keep_the_import_rule_too() -> None:
    """nnU-Net and Triton load these as single files, so they are no packages, and import-linter does not see them."""
    allowed = {"serving/python_backend": set(), "train/trainers": {"ctseg.train"}}
    at_first_request = {"scan.py": {"ctseg.predict", "ctseg.serving"}}
    assert {path.parent for path in PACKAGE.rglob("*.py") if not (path.parent / "__init__.py").is_file()} == {
        PACKAGE / folder for folder in allowed
    }
    for folder, rooms in allowed.items():
        for file in (PACKAGE / folder).glob("*.py"):
            names = [
                name
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in ([node.module] if isinstance(node, ast.ImportFrom) else [item.name for item in node.names])
            ]
            ours = {".".join(str(name).split(".")[:2]) for name in names if str(name).split(".")[0] == "ctseg"}
            assert ours <= rooms | at_first_request.get(file.name, set()), file.name


@pytest.mark.live
def test_a_run_of_the_client_loads_nothing_heavy_and_neither_deploy_nor_train(ct_piece: Path, tmp_path: Path) -> None:
    words = ["predict", "-i", ct_piece, "-o", tmp_path, "-m", "sarcoma", "--repository", ROOT / "model_repository"]
    program = (
        "import contextlib, io\n"
        "from ctseg.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    assert main({[str(word) for word in words]} + ['--disable_tta']) == 0\n"
    )
    heavy = [*BELOW_DEPLOY["forbidden_modules"], "ctseg.deploy", "ctseg.train", "benchmarks", "dask", "distributed"]
    assert loaded_after(program, heavy) == []
    assert (tmp_path / "piece.nii.gz").is_file()


def test_help_of_the_client_loads_nothing_heavy() -> None:
    program = (
        "import contextlib, io\n"
        "from ctseg.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['predict', '--help'])\n"
    )
    heavy = ["torch", "nnunetv2", "onnx", "onnxruntime", "numba", "tritonclient", "ctseg.deploy", "ctseg.train"]
    assert loaded_after(program, heavy) == []


def test_the_check_of_loaded_modules_finds_what_is_loaded() -> None:
    assert loaded_after("import ctseg.errors, json", ["ctseg.errors", "torch"]) == ["ctseg.errors"]


def test_flags_are_known_to_the_command_line_alone() -> None:
    flags = {
        module: {
            flag
            for node in nodes_but_docstrings(module)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            for flag in re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", node.value)
        }
        - FOREIGN_FLAGS
        for module in modules()
    }
    assert {module: found for module, found in flags.items() if found} == {}


def test_only_the_command_line_prints() -> None:
    lines = {
        module: [
            node.lineno
            for node in nodes_but_docstrings(module)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        for module in modules()
    }
    assert {module: found for module, found in lines.items() if found and module not in MAY_PRINT} == {}


LONGEST_MODULE, LONGEST_CLASS = 450, 250
MAY_BE_LONG = "Long because"
"""Begins the sentence in a docstring that says why."""


def test_modules_and_classes_are_short_or_say_why_not() -> None:
    long = []
    for module in sorted(PACKAGE.rglob("*.py")):
        text = module.read_text()
        tree = ast.parse(text)
        name = str(module.relative_to(PACKAGE))
        if len(text.splitlines()) > LONGEST_MODULE and MAY_BE_LONG not in (ast.get_docstring(tree) or ""):
            long.append(name)
        long += [
            f"{name}: {node.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and (node.end_lineno or 0) - node.lineno >= LONGEST_CLASS
            and MAY_BE_LONG not in (ast.get_docstring(node) or "")
        ]
    assert long == []
