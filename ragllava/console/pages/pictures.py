"""Pictures as they are shown on the other pages."""

from __future__ import annotations

from ragllava.console.page import Pages

pages = Pages("Archives")
