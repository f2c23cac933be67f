"""All archives: list, create, rename, remove."""

from __future__ import annotations

from ragllava.api.route import Body, NoBody, NoQuery
from ragllava.api.routes.native.shared import Line
from ragllava.client import AccessRole
from ragllava.console.page import ROOT, Context, Done, Pages, Visit

pages = Pages("Archives")

LIST = f"{ROOT}/archives"
ARCHIVE = f"{LIST}/{{archive}}"


class ArchiveName(Body):
    """The name of a new archive, or the new name of one."""

    name: Line


class RemovalForm(Body):
    """`confirmed` is the name of what is removed, typed in once more."""

    confirmed: Line


@pages.get(LIST, needs=AccessRole.READ, template="archives.html", title="Archives", menu="Archives")
def show_archives(visit: Visit[NoQuery, NoBody]) -> Context:
    """All archives that the caller may see, by name."""
    return {"archives": visit.client.pictures.cards(), "may_write": visit.may(AccessRole.WRITE, of_all=True)}


@pages.post(LIST, needs=AccessRole.WRITE, body=ArchiveName, of_all=True)
def make_archive(visit: Visit[NoQuery, ArchiveName]) -> Done:
    """Create an empty archive."""
    name = visit.body.name.strip()
    visit.client.archives.create(name)
    return Done(f"The archive {name} is there. Add pictures to it.", f"{LIST}/{name}/files")


@pages.get(
    f"{ARCHIVE}/manage",
    needs=AccessRole.ADMIN,
    of_all=True,
    template="archive_manage.html",
    title="Rename or remove",
)
def show_manage(visit: Visit[NoQuery, NoBody]) -> Context:
    """Forms to rename and to remove, with the list of what a removal would erase."""
    name = visit.archive(visit.path("archive"))
    removal = visit.client.archives.remove(name, dry_run=True)
    return {"archive": name, "tab": "manage", "may_manage": True, "removal": removal}


@pages.post(f"{ARCHIVE}/rename", needs=AccessRole.ADMIN, body=ArchiveName, of_all=True)
def rename(visit: Visit[NoQuery, ArchiveName]) -> Done:
    """Give an archive another name."""
    name, new = visit.archive(visit.path("archive")), visit.body.name.strip()
    visit.client.archives.rename(name, new)
    return Done(f"The archive {name} is called {new} now.", f"{LIST}/{new}")


@pages.post(f"{ARCHIVE}/remove", needs=AccessRole.ADMIN, body=RemovalForm, of_all=True)
def remove(visit: Visit[NoQuery, RemovalForm]) -> Done:
    """Erase an archive with all that belongs to it."""
    name = visit.archive(visit.path("archive"))
    if visit.body.confirmed.strip() != name:
        message = f"Nothing was removed: the name that was typed in is not {name}."
        return Done(message, f"{LIST}/{name}/manage", is_problem=True)
    visit.client.archives.remove(name)
    return Done(f"The archive {name} is being removed.", LIST)
