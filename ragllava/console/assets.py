"""Style, scripts: sent under names that contain their hashes, so that browsers keep them for good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ragllava.console.page import ROOT

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_KEPT = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file. `name` contains its hash, `etag` is quoted."""

    name: str
    etag: str
    media_type: str
    data: bytes

    @property
    def address(self) -> str:
        """Where browsers get it."""
        return f"{ROOT}/static/{self.name}"


@cache
def assets() -> Mapping[str, Asset]:
    """The files of `static/` by their plain names."""
    listed = {}
    for file in files("ragllava.console").joinpath("static").iterdir():
        stem, _, ending = file.name.rpartition(".")
        media_type = _TYPES.get(f".{ending}")
        if media_type is not None:
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()[:16]
            listed[file.name] = Asset(f"{stem}.{digest}.{ending}", f'"{digest}"', media_type, data)
    return listed


@cache
def _by_name() -> Mapping[str, Asset]:
    return {asset.name: asset for asset in assets().values()}


def address_of(name: str) -> str:
    """The address of a file of `static/`."""
    return assets()[name].address


async def send_asset(request: Request) -> Response:
    """The file of that name; 304 for a browser that has it. Raises HTTPException."""
    asset = _by_name().get(str(request.path_params["name"]))
    if asset is None:
        raise HTTPException(404)
    headers = {"cache-control": _KEPT, "etag": asset.etag}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.data, headers=headers, media_type=asset.media_type)
