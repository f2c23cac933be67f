"""One archive: a grid of its pictures, which scrolls over all of them, and a search in it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from pydantic import Field
from starlette.responses import JSONResponse, Response

from ragllava.api.route import NoBody, Query
from ragllava.api.routes.native.shared import Id
from ragllava.client import AccessRole, ImageOrder, ImageState, ListedImage, ListKey, ListOptions, Retrieval
from ragllava.console.page import Context, Pages, Visit
from ragllava.console.pages.archives.archives import ARCHIVE, LIST
from ragllava.errors import RagllavaError

pages = Pages("Archives")

PAGE = 60  # pictures of a page, and between two marks
_FOUND = 200  # pictures of a search
_SEARCH_S = 30.0


class GridQuery(Query):
    """Which pictures. `q` searches by picture and caption; without, `where`, `state` and `order` make a list, and
    `after` and `name` are the key of the picture before the page."""

    q: Annotated[str, Field(max_length=2_000)] = ""
    where: Annotated[str, Field(max_length=2_000)] = ""
    state: ImageState = ImageState.USED
    order: ImageOrder = ImageOrder.ID
    after: Id | None = None
    name: Annotated[str, Field(max_length=500)] = ""

    @property
    def key(self) -> ListKey | None:
        """After which picture the page begins."""
        return None if self.after is None else ListKey(self.after, self.name)

    def address(self, archive: str, part: str = "", **changes: object) -> str:
        """The same list at another place."""
        chosen = {"q": self.q, "where": self.where, "state": self.state.value, "order": self.order.value} | changes
        plain = {"state": ImageState.USED.value, "order": ImageOrder.ID.value}
        given = {name: value for name, value in chosen.items() if value not in ("", None, plain.get(name))}
        return f"{LIST}/{archive}{part}" + (f"?{urlencode(given)}" if given else "")


@pages.get(
    ARCHIVE,
    needs=AccessRole.READ,
    query=GridQuery,
    template="archive.html",
    title="Archive",
    archive_in="path:archive",
)
async def show_grid(visit: Visit[GridQuery, NoBody]) -> Context:
    """The first pictures of a list, or those that a search finds."""
    query, name = visit.query, await visit.run(visit.archive, visit.path("archive"))
    shown: dict[str, object] = {
        "archive": name,
        "query": query,
        "total": await visit.run(visit.client.pictures.count, name),
        "states": list(ImageState),
        "may_write": visit.may(AccessRole.WRITE),
        "may_manage": visit.may(AccessRole.ADMIN, of_all=True),
        "tab": "pictures",
        "found": None,
        "problem": None,
        "images": [],
        "later": None,
        "marks": None,
        "tiles": None,
        "every": PAGE,
    }
    try:
        if query.q.strip():
            return shown | {"found": await visit.wait(_search, visit, name)}
        return shown | await visit.run(_first_page, visit, name)
    except RagllavaError as error:
        return shown | {"problem": str(error)}


@pages.part(
    f"{ARCHIVE}/tiles", needs=AccessRole.READ, query=GridQuery, template="_tiles.html", archive_in="path:archive"
)
def show_tiles(visit: Visit[GridQuery, NoBody]) -> Context:
    """A page of the grid, for its script."""
    name = visit.archive(visit.path("archive"))
    return {
        "archive": name,
        "images": visit.client.pictures.page(name, _options(visit, name), after=visit.query.key, limit=PAGE),
    }


@pages.get(f"{ARCHIVE}/marks", needs=AccessRole.READ, query=GridQuery, archive_in="path:archive", is_counted=False)
def list_marks(visit: Visit[GridQuery, NoBody]) -> Response:
    """How many pictures there are, and where each page begins, for the script of the grid."""
    name = visit.archive(visit.path("archive"))
    marks = visit.client.pictures.marks(name, _options(visit, name), PAGE)
    return JSONResponse({"total": marks.total, "keys": [[key.image_id, key.name] for key in marks.keys]})


def _options(visit: Visit[GridQuery, NoBody], name: str) -> ListOptions:
    query = visit.query
    return visit.client.pictures.options(name, state=query.state, where=query.where.strip() or None, order=query.order)


def _first_page(visit: Visit[GridQuery, NoBody], name: str) -> dict[str, object]:
    query, options = visit.query, _options(visit, name)
    images = visit.client.pictures.page(name, options, after=query.key, limit=PAGE + 1)
    return {
        "images": images[:PAGE],
        "later": _next_page(query, name, images[PAGE - 1]) if len(images) > PAGE else None,
        "marks": query.address(name, "/marks"),
        "tiles": query.address(name, "/tiles"),
    }


def _next_page(query: GridQuery, name: str, last: ListedImage) -> str:
    by_name = last.source[:200] if query.order is ImageOrder.NAME else ""
    return query.address(name, after=last.image_id, name=by_name)


def _search(visit: Visit[GridQuery, NoBody], name: str) -> list[dict[str, object]]:
    found = visit.client.requests.search(
        name,
        visit.query.q.strip(),
        limit=_FOUND,
        retrieval=Retrieval.HYBRID,
        where=visit.query.where.strip() or None,
        timeout_s=_SEARCH_S,
    )
    listed = visit.client.pictures.listed(name, [hit.image.image_id for hit in found])
    return [{"image": listed[hit.image.image_id], "hit": hit} for hit in found if hit.image.image_id in listed]
