"""The HTTP API and the console as one application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute

from ragllava.api.app import api_routes, assemble
from ragllava.api.errors import handle
from ragllava.api.server import Server
from ragllava.client import Client
from ragllava.console.assets import send_asset
from ragllava.console.page import ROOT
from ragllava.console.pages import ALL_PAGES
from ragllava.console.server import ConsoleServer


def make_site(client: Client) -> Starlette:
    """The API and the console on a client `for_tenants`."""
    server = Server(client)
    console = ConsoleServer(server, ALL_PAGES)

    async def on_error(request: Request, error: Exception) -> Response:
        if request.url.path == ROOT or request.url.path.startswith(f"{ROOT}/"):
            return await console.lost(request, error)
        return await handle(request, error)

    routes: list[BaseRoute] = [
        StarletteRoute("/", _lead_browsers, methods=["GET"]),
        StarletteRoute(f"{ROOT}/static/{{name}}", send_asset, methods=["GET"]),
        *(
            StarletteRoute(page.path, console.endpoint(page), methods=[page.method], name=page.name)
            for page in ALL_PAGES
        ),
        *api_routes(server),
    ]
    return assemble(routes, on_error)


async def _lead_browsers(request: Request) -> Response:
    """Browsers to the console; for programs there is nothing here."""
    if "text/html" not in request.headers.get("accept", ""):
        raise HTTPException(404)
    return RedirectResponse(ROOT, 307)
