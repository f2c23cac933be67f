"""Submit a file of questions: what is in it is shown before anything starts."""

from __future__ import annotations

from typing import Any

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import NoBody, NoQuery, Query
from ragllava.api.routes.native.jobs import MAX_FORM_BYTES, JobFileForm, named_file, submit
from ragllava.client import AccessRole, Checked, Depth, Retrieval
from ragllava.console.page import ROOT, Context, Done, Pages, Shown, Visit
from ragllava.errors import InvalidInput, UsageError

pages = Pages("Jobs")

NEW = f"{ROOT}/jobs/new"
_FIRST_LINES = 10
_SHOWN_ERRORS = 1_000


class NewQuery(Query):
    """The archive that is chosen first."""

    archive: str = ""


@pages.get(NEW, needs=AccessRole.ASK, query=NewQuery, template="submit.html", title="Submit questions")
def show_form(visit: Visit[NewQuery, NoBody]) -> Context:
    """The form."""
    return _form(visit, visit.query.archive)


@pages.post(
    f"{NEW}/check",
    needs=AccessRole.ASK,
    body=JobFileForm,
    upload=MAX_FORM_BYTES,
    archive_in="body:archive",
    is_change=False,
)
def check_file(visit: Visit[NoQuery, JobFileForm]) -> Shown:
    """The first lines of a file, every error in it, and about how long its job would take. Nothing starts."""
    context = _checked(visit)
    if visit.is_partial:
        return Shown(context, "_checked.html")
    return Shown(_form(visit, visit.body.archive) | context, "submit.html")


@pages.post(NEW, needs=AccessRole.ASK, body=JobFileForm, upload=MAX_FORM_BYTES, archive_in="body:archive")
def submit_file(visit: Visit[NoQuery, JobFileForm]) -> Done | Shown:
    """Queue the questions of a file. A file with errors is shown again, unless they are to be left out."""
    archive = visit.archive(visit.body.archive)
    file = _file(visit)
    with named_file(file.file, file.filename or "") as path:
        try:
            submitted = submit(visit, visit.body, archive, path)
        except InvalidInput:
            return Shown(_form(visit, archive) | _checked(visit), "submit.html", status=400)
    return Done(f"Job {submitted.job} has {submitted.total:,} questions.", f"{ROOT}/jobs/{submitted.job}")


def _form(visit: Visit[Any, Any], archive: str) -> dict[str, Any]:
    return {
        "archives": visit.client.archives.names(),
        "archive": archive,
        "retrievals": list(Retrieval),
        "depths": list(Depth),
        "defaults": JobFileForm(archive="x"),
        "checked": None,
        "problem": None,
        "file_name": None,
    }


def _checked(visit: Visit[NoQuery, JobFileForm]) -> dict[str, Any]:
    """What the file would become; a problem instead, if it cannot be read at all."""
    form, archive, file = visit.body, visit.archive(visit.body.archive), _file(visit)
    checked, problem = None, None
    try:
        with named_file(file.file, file.filename or "") as path:
            checked = visit.client.questions.check(
                path, archive, form.options, where=form.where, priority=form.chosen_priority
            )
    except UsageError as error:
        problem = str(error)
    return _of_checked(checked) | {"problem": problem, "file_name": file.filename}


def _of_checked(checked: Checked | None) -> dict[str, Any]:
    if checked is None:
        return {"checked": None}
    return {
        "checked": checked,
        "first": checked.valid[:_FIRST_LINES],
        "errors": checked.errors[:_SHOWN_ERRORS],
        "more_errors": max(0, len(checked.errors) - _SHOWN_ERRORS),
    }


def _file(visit: Visit[NoQuery, JobFileForm]) -> Any:
    file = visit.files.get("file")
    if file is None or not file.filename:
        raise InvalidRequest("choose a file of questions first", "file")
    return file
