"""Filters: which images of an archive may be candidates of a question."""

from __future__ import annotations

from typing import Any


def both_filters(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """The filter that lets pass what both let pass."""
    return first or second
