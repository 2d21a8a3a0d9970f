"""What the pages name is there: files, modules, tests, make targets, commands and flags, links.

Pages of history (measurements, decisions, the changelog) keep the names of their day; their links and lines
are checked, their names are not.
"""

import argparse
import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ctseg.cli.main import build_parser
from ctseg.container.settings import Settings
from ctseg.serving.whole_scan.settings import ScanSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CARDS = [ROOT / "model_repository" / "README.md", ROOT / "examples" / "demo_data" / "README.md"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *CARDS, *sorted(DOCS.glob("*.md"))]
HISTORY = [ROOT / "CHANGELOG.md", *sorted(DOCS.glob("decisions/*.md")), *sorted(DOCS.glob("measurements/*.md"))]
LONGEST_LINE = 120

TOP_FOLDERS = "ctseg|docs|scripts|tests|docker|requirements|benchmarks|examples|model_repository|.github"
FLAGS_OF_OTHERS = {
    # Docker and podman
    "--gpus", "--gpus all", "--shm-size 8g", "--ipc host", "--read-only", "--tmpfs /tmp", "--tmpfs /tmp:exec", "--user",
    "--format docker", "--network none", "--start-period",
    # nnU-Net
    "-num_gpus",
    # the benchmark, tritonserver, pip, pytest
    "--large", "--quick", "--full", "--help", "--no-deps",
}  # fmt: skip

MADE_BY_COMMANDS = {"bundles/", "parity/", "parity_phantom/", "model.py"}
"""In bundles and entries of a model repository."""


class Code(NamedTuple):
    """A piece of code on a page: a line of a block (joined with those that it goes on in), or words in backticks."""

    page: Path
    line: int
    text: str
    inline: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"


def code_of(page: Path) -> Iterator[Code]:
    language: str | None = None
    begun = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip().startswith("```"):
            language = None if language is not None else line.strip().removeprefix("```")
        elif language is not None:
            command = f"{begun}{line}"
            begun = f"{command[:-1]} " if command.endswith("\\") else ""
            if not begun:
                yield Code(page, number, command, inline=False)
        else:
            for match in re.finditer(r"`([^`]+)`", line):
                yield Code(page, number, match.group(1), inline=True)


@functools.cache
def all_code() -> tuple[Code, ...]:
    return tuple(code for page in PAGES for code in code_of(page))


def told(findings: list[str]) -> str:
    return "\n".join(["", *findings])


@pytest.mark.parametrize("page", [*PAGES, *HISTORY], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_is_too_long_to_read(page):
    code, long = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.strip().startswith("```")
        shown = re.sub(r"\]\([^)]*\)", "]()", line)
        if not code and not line.startswith("|") and len(shown) > LONGEST_LINE:
            long.append(f"{number}: {len(shown)} characters")
    assert not long, told(long)


def test_readme_is_short_has_its_pictures_and_says_what_it_is_not():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= LONGEST_LINE
    assert any("docs/pictures/demo.png" in line for line in lines[:15])
    assert any("docs/pictures/road.svg" in line for line in lines[:25])
    assert any("not a medical device" in line for line in lines)
    assert (DOCS / "pictures" / "demo.png").stat().st_size < 300_000


@pytest.mark.parametrize("page", [*PAGES, *HISTORY], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if re.match(r"[a-z]+://|mailto:", target):
            continue
        goal = (page.parent / target).resolve() if target else page
        if not goal.exists() or (anchor and anchor[1:] not in anchors(goal)):
            broken.append(target + anchor)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as public forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_that_are_named_exist():
    missing = []
    for code in all_code():
        for path in re.findall(rf"(?<![\w./-])(?:{TOP_FOLDERS})/[\w./-]+|\b(?:Dockerfile\.\w+|Makefile)\b", code.text):
            path = path.rstrip("./")
            if not code.inline and path.startswith(("docs/", "model_repository/")) and not Path(path).suffix:
                continue
            if not (ROOT / path).exists() and not (code.page.parent / path).exists():
                missing.append(f"{code}  ({path})")
    assert not missing, told(missing)


def test_modules_that_are_named_exist():
    # `files/atomic.py` is short for `ctseg/files/atomic.py`
    missing = []
    for code in all_code():
        short = code.inline and re.fullmatch(r"[a-z_]+(/[a-z_]+)*(\.py|/)", code.text)
        if short and not any((folder / code.text).exists() for folder in (ROOT / "ctseg", ROOT, code.page.parent)):
            missing += [str(code)] if code.text not in MADE_BY_COMMANDS else []
        for name in re.findall(r"(?<![\w/.-])ctseg(?:\.\w+)+", code.text):
            if not name.endswith((".json", ".zip", ".yaml")) and not is_defined(name):
                missing.append(f"{code}  ({name})")
        if match := re.match(r"from (ctseg[\w.]*) import (.+)", code.text):
            module, names = match.groups()
            missing += [f"{code}  ({name})" for name in re.findall(r"\w+", names) if not is_defined(f"{module}.{name}")]
    assert not missing, told(missing)


def is_defined(dotted: str) -> bool:
    """Return whether a dotted name is a module of ctseg, or a name at the top of one; nothing is imported."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:length])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if file.is_file():
            rest = parts[length:]
            return not rest or rest[0] in names_of(file)
    return False


@functools.cache
def names_of(file: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(found)


def test_tests_that_hold_a_claim_exist():
    everywhere = {file: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py")}
    missing = []
    for code in all_code():
        if match := re.fullmatch(r"(?:(?P<file>[\w/.…]+)::)?(?P<test>test_\w+)", code.text):
            file = match["file"]
            texts = [everywhere.get(ROOT / file, "")] if file and file != "…" else everywhere.values()
            if not any(f"def {match['test']}(" in text for text in texts):
                missing.append(str(code))
    assert not missing, told(missing)


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = [(code, target) for code in all_code() for target in re.findall(r"(?:^|[;&] )make ([a-z-]+)", code.text)]
    missing = [f"{code}  ({target})" for code, target in named if target not in targets]
    assert len(named) > 5
    assert not missing, told(missing)


def test_commands_and_flags_that_are_named_exist():
    checked, wrong = 0, []
    for code in all_code():
        for words in command_lines(code.text):
            checked += 1
            if problem := problem_of(words):
                wrong.append(f"{code}  ({problem})")
    assert checked > 30
    assert not wrong, told(wrong)


def test_flags_that_are_named_alone_exist():
    known = {flag for parser in parsers() for flag in parser._option_string_actions}
    wrong = [
        str(code)
        for code in all_code()
        if code.inline and re.match(r"--?[a-zA-Z]", code.text) and code.text not in FLAGS_OF_OTHERS
        if not {word.split("=")[0] for word in code.text.split() if re.match(r"--?[a-zA-Z]", word)} <= known
    ]
    assert not wrong, told(wrong)


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after ``ctseg`` of each command in a line."""
    for part in re.split(r"&&|\|\||[;|]|\s#", text):
        if match := re.search(r"(?:^|\s-m\s)ctseg\s+(.*)", part.strip()):
            words = match[1].replace("…", " ").replace("'", '"')
            yield shlex.split(words) if words.count('"') % 2 == 0 else words.split()


def problem_of(words: list[str]) -> str:
    parser: argparse.ArgumentParser = build_parser()
    while words and (choices := choices_of(parser)) is not None and not words[0].startswith("-"):
        if words[0] not in choices:
            return f"no command {words[0]}"
        parser, words = choices[words[0]], words[1:]
    flags = [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    unknown = [flag for flag in flags if flag not in parser._option_string_actions]
    return f"no flag {', '.join(unknown)}" if unknown else ""


def choices_of(parser: argparse.ArgumentParser) -> "dict[str, argparse.ArgumentParser] | None":
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return None


@functools.cache
def parsers() -> tuple[argparse.ArgumentParser, ...]:
    def below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield parser
        for child in (choices_of(parser) or {}).values():
            yield from below(child)

    return tuple(below(build_parser()))


def test_the_table_of_rooms_is_the_tree_in_the_order_of_the_import_rule():
    table = (
        (DOCS / "architecture.md").read_text(encoding="utf-8").split("## The rooms")[1].split("**The import rule.**")[0]
    )
    rooms = re.findall(r"^\| `([a-z_]+)/`", table, re.MULTILINE)
    layers = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1].split("]")[0]
    ordered = [name for line in re.findall(r'"([a-z_ |]+)"', layers)[::-1] for name in line.split(" | ")]
    packages = {file.parent.name for file in (ROOT / "ctseg").glob("*/__init__.py")}
    assert rooms == [name for name in ordered if name in packages]
    assert set(rooms) == packages


def test_every_setting_of_the_serving_container_is_explained_and_no_other():
    table = (DOCS / "operating.md").read_text(encoding="utf-8").split("## Settings")[1].split("\n## ")[0]
    named = {
        name for row in re.findall(r"^\|[^|]+\|", table, re.MULTILINE) for name in re.findall(r"`(CTSEG_\w+)`", row)
    }
    scans = {f"CTSEG_SCAN_{name.upper()}" for name in ScanSettings.model_fields}
    assert named == scans | {f"CTSEG_{name.upper()}" for name in Settings.model_fields}


def test_decisions_are_numbered_without_a_gap_and_have_a_date_and_a_status():
    files = sorted((DOCS / "decisions").glob("*.md"))
    assert [file.name[:4] for file in files] == [f"{number:04}" for number in range(1, len(files) + 1)]
    for number, file in enumerate(files, 1):
        first, _, third = file.read_text(encoding="utf-8").splitlines()[:3]
        assert first.startswith(f"# {number}. "), file.name
        assert re.match(r"Date: \d{4}-\d\d-\d\d\. Status: (accepted|superseded by \d+)\.", third), file.name
