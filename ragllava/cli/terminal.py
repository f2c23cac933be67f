"""The border to the terminal: every command prints through this module, so that text from outside cannot control it.

Names, captions, questions and messages may contain escape sequences. They are shown as backslash escapes, in a pipe as
well; the colours and movements of our own are not text, and are kept.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import click

from ragllava.visible import visible

if TYPE_CHECKING:
    from rich.console import Console


def echo(text: str, *, err: bool = False) -> None:
    """Print lines of plain text."""
    click.echo(visible(text), err=err)


def make_console(**options: Any) -> Console:
    """A console of rich with these options, whose texts are shown as by `echo`."""
    return _console_class()(**options)


@cache
def _console_class() -> type[Console]:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class SafeConsole(Console):
        """All that a console prints is rendered here; colours and movements are not in the text of a segment."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            """As rich does, with visible control characters."""
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=visible(segment.text))

    return SafeConsole
