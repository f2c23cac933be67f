"""One picture of an archive, and pictures as they are shown on other pages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from ragllava.api.route import Body, NoBody, NoQuery
from ragllava.api.routes.native import pictures as api
from ragllava.client import AccessRole
from ragllava.console.page import Context, Done, Pages, Shown, Visit
from ragllava.console.pages.archives.archives import ARCHIVE, LIST

pages = Pages("Archives")

PICTURE = f"{ARCHIVE}/pictures/{{image_id}}"


class CaptionForm(Body):
    """A caption, and the one that it replaces."""

    caption: Annotated[str, Field(max_length=100_000)] = ""
    expected: Annotated[str, Field(max_length=100_000)] = ""


@pages.get(PICTURE, needs=AccessRole.READ, template="picture.html", title="Picture", archive_in="path:archive")
def show_picture(visit: Visit[NoQuery, NoBody]) -> Context:
    """Caption, metadata, indexes, and the answers that rest on it."""
    name = visit.archive(visit.path("archive"))
    return {
        "archive": name,
        "picture": visit.client.pictures.get(name, visit.number("image_id")),
        "may_write": visit.may(AccessRole.WRITE),
        "shown_types": api.SHOWN_TYPES,
    }


@pages.get(f"{PICTURE}/thumbnail", needs=AccessRole.READ, archive_in="path:archive", is_counted=False)
def send_thumbnail(visit: Visit[NoQuery, NoBody]) -> Response:
    """A small JPEG."""
    return api.send_thumbnail(visit, api.content_of(visit))


@pages.get(f"{PICTURE}/content", needs=AccessRole.READ, archive_in="path:archive", is_counted=False)
def send_content(visit: Visit[NoQuery, NoBody]) -> Response:
    """The bytes of the picture."""
    return api.send_picture(visit, api.content_of(visit))


@pages.get(
    f"{PICTURE}/duplicates",
    needs=AccessRole.READ,
    template="duplicates.html",
    title="Duplicates",
    archive_in="path:archive",
)
def show_duplicates(visit: Visit[NoQuery, NoBody]) -> Shown:
    """Other files of the same bytes, and pictures that look the same: a part of the picture's page."""
    name, image_id = visit.archive(visit.path("archive")), visit.number("image_id")
    duplicates = visit.client.pictures.duplicates(name, image_id)
    context = {"archive": name, "image_id": image_id, "duplicates": duplicates}
    return Shown(context, "_duplicates.html" if visit.is_partial else None)


@pages.post(f"{PICTURE}/caption", needs=AccessRole.WRITE, body=CaptionForm, archive_in="path:archive")
def edit_caption(visit: Visit[NoQuery, CaptionForm]) -> Done:
    """Replace the caption."""
    name, image_id = visit.archive(visit.path("archive")), visit.number("image_id")
    caption = visit.client.pictures.set_caption(
        name, image_id, visit.body.caption, expected=visit.body.expected or None
    )
    said = "The caption is changed." if caption else "The caption is removed."
    return Done(said, f"{LIST}/{name}/pictures/{image_id}")


@pages.get(
    f"{PICTURE}/remove",
    needs=AccessRole.WRITE,
    template="picture_remove.html",
    title="Remove",
    archive_in="path:archive",
)
def show_removal(visit: Visit[NoQuery, NoBody]) -> Context:
    """What a removal would erase."""
    name, image_id = visit.archive(visit.path("archive")), visit.number("image_id")
    return {
        "archive": name,
        "picture": visit.client.pictures.get(name, image_id),
        "removal": visit.client.archives.remove_pictures(name, [str(image_id)], dry_run=True),
    }


@pages.post(f"{PICTURE}/remove", needs=AccessRole.WRITE, archive_in="path:archive")
def remove_picture(visit: Visit[NoQuery, NoBody]) -> Done:
    """Erase a picture from every place where it is stored."""
    name = visit.archive(visit.path("archive"))
    picture = visit.client.pictures.get(name, visit.number("image_id"))
    visit.client.archives.remove_pictures(name, [str(picture.image_id)])
    return Done(f"{picture.source} is being removed.", f"{LIST}/{name}")
