"""Pages from templates: everything from outside is escaped, and nothing is asked of a network."""

import json
import math
import re
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import missing_package

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"
_DANGEROUS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_BARS = 24


def render(template: str, **context: Any) -> str:
    """Return a page.

    What is put into a template is escaped. A page runs only scripts that stand in its template (a nonce that is new for
    each page says so), and asks no network (its Content-Security-Policy).

    Args:
        template: Name of a file beside ``base.html.j2``.
        context: What the template shows; ``title`` at least.

    Raises:
        SetupError: Jinja is not installed.
    """
    return _environment().get_template(template).render(nonce=secrets.token_urlsafe(18), **context)


def json_for_script(value: Any) -> "Markup":
    """Return a value as JSON that may stand in a script of a page: it ends no element and no line.

    Raises:
        ValueError: A number is not finite.
    """
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False)
    for character, written in _DANGEROUS.items():
        text = text.replace(character, written)
    return Markup(text)  # noqa: S704 (nothing is left in it that means something to HTML)


def histogram(values: Sequence[float], unit: str = "", *, colour: str = "#5b7fa6") -> "Markup":
    """Return a drawing of how values are spread; of none, a dash.

    Args:
        values: What is counted; NaN and infinity are left out, and told.
        unit: Behind the numbers at the axis.
        colour: Of the bars, as style sheets write it.
    """
    from markupsafe import Markup, escape

    finite = [float(value) for value in values if math.isfinite(value)]
    others = len(values) - len(finite)
    note = f"{others} not defined" if others else ""
    if not finite:
        return Markup("<span class=muted>–{}</span>").format(f" {note}" if note else "")
    low, high = min(finite), max(finite)
    bars = min(_BARS, max(5, math.ceil(2 * math.sqrt(len(finite))))) if high > low else 1
    width = (high - low) / bars or 1.0
    counts = [0] * bars
    for value in finite:
        counts[min(bars - 1, int((value - low) / width))] += 1
    tallest, step = max(counts), 240 / max(bars, 5)
    drawn = Markup().join(
        Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}"><title>{}</title></rect>').format(
            f"{10 + step * place + 0.5:.1f}", f"{62 - 54 * count / tallest:.1f}", f"{step - 1:.1f}",
            f"{54 * count / tallest:.1f}", colour,
            f"{number(low + width * place)}{f' to {number(low + width * (place + 1))}' * (bars > 1)} {unit}: {count}",
        )
        for place, count in enumerate(counts)
        if count
    )  # fmt: skip
    ends = f"{number(low)} {unit}".strip(), f"{number(high)} {unit}".strip() if high > low else ""
    return Markup(
        '<svg class="histogram" viewBox="0 0 260 82" role="img"><line x1="10" y1="62.5" x2="250" y2="62.5"/>{}'
        '<text x="10" y="77">{}</text><text x="250" y="77" text-anchor="end">{}</text></svg>{}'
    ).format(drawn, *ends, Markup("<span class=muted>{}</span>").format(note) if note else escape(""))


def number(value: float | None) -> str:
    """Return a number for people: three digits that count; a dash for None and what is not defined."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _script_text(script: str) -> "Markup":
    """Return a script of ctseg's own package for a page: it ends no element."""
    from markupsafe import Markup

    # inside a script's strings and patterns the backslash changes nothing
    return Markup(re.sub("</(?=script)|<(?=!--)", lambda found: found[0][0] + "\\" + found[0][1:], script, flags=re.I))  # noqa: S704


def _sort_key(value: float | None) -> str:
    """Return a number as scripts read it; empty for what has no place in an order."""
    if value is None or math.isnan(value):
        return ""
    return str(value) if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


@lru_cache(maxsize=1)
def _environment() -> "jinja2.Environment":
    try:
        import jinja2
    except ImportError as error:
        raise missing_package("Jinja", needed_for="a page", extra="pages") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, json_for_script=json_for_script, sort_key=_sort_key, script_text=_script_text
    )
    environment.globals.update(histogram=histogram)
    return environment
