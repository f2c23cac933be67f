"""Questions that a fragile worker answers only when a test lets them go: until then their shard runs, however slow the
machine is."""

from __future__ import annotations

from pathlib import Path

from ragllava.settings import Settings

HELD = "HELD"


def held_questions(number: int, *, free: int) -> list[str]:
    """So many questions, of which the first ones are free and the others held."""
    return [f"{HELD if n >= free else 'free'} question {n}" for n in range(number)]


def are_let_go(settings: Settings) -> bool:
    """Whether the held questions of the systems of this home may be answered."""
    return _file(settings).exists()


def let_go(settings: Settings) -> None:
    """Let them be answered from now on."""
    _file(settings).parent.mkdir(parents=True, exist_ok=True)
    _file(settings).touch()


def _file(settings: Settings) -> Path:
    return settings.home / "let-go"
