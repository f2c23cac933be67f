"""One question, and its answer with the evidence."""

from __future__ import annotations

from ragllava.console.page import Pages

pages = Pages("Ask")
