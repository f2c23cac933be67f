"""A browser without a window or scripts: it keeps cookies, and sends forms with the token of its sign-in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


@dataclass(frozen=True)
class Reader:
    """Somebody who is signed in. `csrf` is what the forms contain."""

    http: httpx.Client
    csrf: str

    def get(self, path: str, **headers: str) -> httpx.Response:
        """A page; redirects are not followed."""
        return self.http.get(path, headers=headers)

    def post(self, path: str, data: Mapping[str, Any] | None = None, **options: Any) -> httpx.Response:
        """A form as a browser sends it."""
        headers = {"origin": str(self.http.base_url).rstrip("/")} | options.pop("headers", {})
        return self.http.post(path, data=dict(data or {}) | {"csrf": self.csrf}, headers=headers, **options)


@contextmanager
def reading(url: str, key: str | None) -> Iterator[Reader]:
    """Signed in with a key; None: not signed in."""
    with httpx.Client(base_url=url, timeout=60) as http:
        csrf = ""
        if key is not None:
            entered = http.post("/console/sign-in", data={"key": key}, headers={"origin": url})
            assert entered.status_code == 303, entered.text
            token = CSRF.search(http.get("/console").text)
            assert token is not None
            csrf = token[1]
        yield Reader(http, csrf)
