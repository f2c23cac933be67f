"""Filters: which images of an archive may be candidates of a question."""

from __future__ import annotations
