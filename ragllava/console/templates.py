"""The templates, and what they show values with. Everything is escaped, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ragllava.console.assets import address_of
from ragllava.visible import visible

_LONGEST = 2_000  # characters of a text that is shown
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


@cache
def environment() -> Environment:
    """The templates of this package."""
    made = Environment(
        loader=PackageLoader("ragllava.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals["static"] = address_of
    made.filters |= {
        "told": told,
        "visible": plain,
        "number": number,
        "percent": percent,
        "moment": moment,
        "duration": duration,
        "size": size,
        "words": words,
        "commands": commands,
    }
    return made


def render(template: str, context: Mapping[str, Any]) -> str:
    """The page as HTML."""
    return environment().get_template(template).render(context)


def told(text: object, longest: int = _LONGEST) -> Markup:
    """A text from outside: isolated from what stands around it, without control characters, cut where it is too long.

    The direction of its letters changes nothing beside it, and an override inside cannot leave it.
    """
    given = str(text)
    cut = visible(given if len(given) <= longest else given[:longest] + "…")
    return Markup('<bdi dir="auto">{}</bdi>').format(cut)


def plain(text: object, longest: int = 200) -> str:
    """A text from outside where no element can stand: in an attribute, an option, a title."""
    given = visible(str(text))
    return given if len(given) <= longest else given[:longest] + "…"


def number(value: float) -> str:
    """With commas."""
    return f"{value:,}"


def percent(share: float) -> str:
    """Of a share from 0 to 1."""
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """In the largest fitting unit."""
    if seconds is None:
        return "unknown"
    for unit_s, name in _UNITS:
        if seconds >= unit_s:
            count = round(seconds / unit_s)
            return f"{count:,} {name}{'' if count == 1 else 's'}"
    return "less than a second"


def moment(at: datetime | str | None) -> Markup:
    """A time as an element: short for the eye, exact in its title."""
    if at is None:
        return escape("–")
    given = datetime.fromisoformat(at) if isinstance(at, str) else at
    time = given.astimezone(UTC)
    age_s = (datetime.now(UTC) - time).total_seconds()
    near = f"{duration(age_s)} ago" if age_s >= 0 else f"in {duration(-age_s)}"
    shown = near if abs(age_s) < 86_400 else f"{time:%Y-%m-%d %H:%M} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        time.isoformat(), f"{time:%Y-%m-%d %H:%M:%S} UTC", shown
    )


def size(size_bytes: float) -> str:
    """Bytes in the largest fitting unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:,.0f} {unit}" if unit == "bytes" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"


def commands(sentence: str) -> Markup:
    """A sentence of this program, in which what stands between backticks is something to type."""
    parts = [Markup("<code>{}</code>").format(part) if odd else escape(part) for odd, part in _alternating(sentence)]
    return Markup("").join(parts)


def _alternating(sentence: str) -> Iterator[tuple[int, str]]:
    return ((number % 2, part) for number, part in enumerate(sentence.split("`")))


def words(name: object) -> str:
    """A name of the code as words: `no_evidence` is "no evidence"."""
    return str(name).replace("_", " ")
