"""The base of every JSON document that ctseg writes and reads again."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Document(BaseModel):
    """A frozen document in which an unknown field, NaN or infinity is an error, never a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical(data: Any) -> bytes:
    """Return the one JSON of plain data that digests are made of: ASCII, keys sorted, no spaces."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def told_by(error: ValidationError, *, whole: str) -> str:
    """Return all problems of a document in one line.

    Args:
        error: What pydantic found.
        whole: What a problem is of that no single field has.
    """
    problems = error.errors()
    wrong = {problem["loc"][:end] for problem in problems for end in range(len(problem["loc"]))}
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or whole}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in problems
        if problem["type"] != "too_short" or problem["loc"] not in wrong  # pydantic counts sound items only
    )


def told_of_settings(error: ValidationError, *, prefix: str) -> list[str]:
    """Return a line for each problem, such as ``CTSEG_TLS=on: expected 'off', 'server' or 'mutual'``.

    Args:
        error: What pydantic found.
        prefix: Of the settings' names: ``CTSEG_`` for variables, which are in capitals, or ``--`` for words.
    """
    lines = []
    for problem in error.errors(include_url=False):
        if problem["type"] == "value_error":  # from a validator of ours, whose message names the setting
            lines.append(str(problem["ctx"]["error"]))
            continue
        name = f"{prefix}{'.'.join(str(part) for part in problem['loc'])}"
        name = name.upper() if prefix.isupper() else name
        lines.append(f"{name}={problem['input']}: {problem['msg'].replace('Input should be', 'expected')}")
    return lines
