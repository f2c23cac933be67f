"""Keys of the HTTP API."""

from __future__ import annotations

from ragllava.console.page import Pages

pages = Pages("Keys")
