"""One picture of an archive, and pictures as they are shown on other pages."""

from __future__ import annotations

from starlette.responses import Response

from ragllava.api.route import NoBody, NoQuery
from ragllava.api.routes.native import pictures as api
from ragllava.client import AccessRole
from ragllava.console.page import Pages, Visit

pages = Pages("Archives")

PICTURE = "/console/archives/{archive}/pictures/{image_id}"


@pages.get(f"{PICTURE}/thumbnail", needs=AccessRole.READ, archive_in="path:archive", is_counted=False)
def send_thumbnail(visit: Visit[NoQuery, NoBody]) -> Response:
    """A small JPEG."""
    return api.read_thumbnail(visit)


@pages.get(f"{PICTURE}/content", needs=AccessRole.READ, archive_in="path:archive", is_counted=False)
def send_content(visit: Visit[NoQuery, NoBody]) -> Response:
    """The bytes of the picture."""
    return api.read_picture(visit)
