"""Noisy cases, one after another."""

from __future__ import annotations

from ragllava.console.page import Pages

pages = Pages("Review")
