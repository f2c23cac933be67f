"""How a page of the console is declared: one record, from which the server, the navigation and the tests are made.

    pages = Pages("Jobs")

    @pages.get("/console/jobs", needs=AccessRole.READ, template="jobs.html", title="Jobs", menu="Jobs")
    def list_jobs(visit: Visit[JobsQuery, NoBody]) -> Context:
        '''Jobs, the newest first.'''
        return {"jobs": visit.client.jobs.list(limit=20)}

    @pages.post("/console/jobs/{job_id}/cancel", needs=AccessRole.ASK, archive_in="path:job_id")
    def cancel(visit: Visit[NoQuery, NoBody]) -> Done:
        '''Stop a job.'''
        visit.client.jobs.cancel(visit.number("job_id"))
        return Done("The job is cancelled.", f"/console/jobs/{visit.path('job_id')}")

A handler calls the client and holds no logic. It returns what its template shows, a Shown for another template or
status, a Done that leads to a page with a message, or a Response. Plain functions run in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import anyio
from starlette.datastructures import UploadFile

from ragllava.api.route import Body, Call, Declared, Endpoint, H, Handler, P, Query, T
from ragllava.client import AccessRole, Principal
from ragllava.errors import QuotaExceeded

Q = TypeVar("Q", bound=Query)
B = TypeVar("B", bound=Body)
NewBody = TypeVar("NewBody", bound=Body)

ROOT = "/console"
_RETRY_S = 5.0  # as long as a provider may take
Context = Mapping[str, Any]


def as_list(value: object) -> object:
    """The value of a field that may be repeated: a form that has it once sends no list. For BeforeValidator."""
    return value if isinstance(value, list) or value is None else [value]


def has_right(principal: Principal, role: AccessRole, *, of_all: bool = False) -> bool:
    """Whether a caller may do what needs this role; with `of_all`, what concerns all archives."""
    return principal.role.includes(role) and not (of_all and principal.archives is not None)


@dataclass(frozen=True)
class Visit(Call[Q, B]):
    """A request of a browser that has been checked. `query`, `body` and `files` are as the page declares them.

    `csrf` is what each form sends back; `secret` is the cookie of whoever is signed in.
    """

    files: Mapping[str, UploadFile] = field(default_factory=dict)
    secret: str | None = None
    csrf: str = ""
    theme: str = ""

    async def wait_as_stranger(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `wait`, for whoever is not signed in yet: such calls wait for a few threads, not for those of all.

        Raises QuotaExceeded when too many are under way.
        """
        strangers: anyio.CapacityLimiter = self.request.app.state.strangers
        try:
            strangers.acquire_nowait()
        except anyio.WouldBlock:
            raise QuotaExceeded("too many browsers are signing in at this moment; try again", _RETRY_S) from None
        try:
            return await self.wait(work, *args, **kwargs)
        finally:
            strangers.release()

    def may(self, role: AccessRole, *, of_all: bool = False) -> bool:
        """Whether the caller may do what needs this role; with `of_all`, what concerns all archives."""
        return has_right(self.principal, role, of_all=of_all)

    @property
    def is_partial(self) -> bool:
        """Whether htmx asks for a part of a page, which it puts into the one that is shown."""
        headers = self.request.headers
        return headers.get("hx-request") == "true" and headers.get("hx-boosted") != "true"

    def with_body(self, body: NewBody) -> Visit[Q, NewBody]:
        """The same visit with the body that a handler of the API takes."""
        return cast("Visit[Q, NewBody]", replace(self, body=cast("B", body)))


@dataclass(frozen=True, slots=True)
class Shown:
    """What a template shows, where it is not that of the page, or not with the status 200."""

    context: Context
    template: str | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """A change was made: the browser goes to the path `to`, where the message is shown once."""

    message: str
    to: str
    is_problem: bool = False


@dataclass(frozen=True, slots=True)
class Page(Endpoint):
    """One page, a part of one, or a change that a form asks for.

    `menu` is its name in the navigation, None: it is not there. `section` is that of its module: the navigation marks
    it. `is_counted`: whether it counts towards the requests of its caller in a minute, and as use of its
    sign-in; pictures, and parts that pages fetch by themselves, do not.
    `is_change`: whether a form changes what others see, and so is noted in the audit.
    """

    section: str = ""
    template: str | None = None
    title: str = ""
    menu: str | None = None
    is_counted: bool = True
    is_change: bool = True
    is_endless: bool = False  # its answer is events, until the browser leaves

    def may_be_used_by(self, principal: Principal) -> bool:
        """Whether a role may see the page at all; which rows it sees is another question."""
        return self.needs is None or has_right(principal, self.needs, of_all=self.of_all)


class Pages(Declared[Page]):
    """The pages of one module; the heading is that of the navigation."""

    def made(self, method: str, path: str, handler: Handler, needs: AccessRole | None, **declared: Any) -> Page:
        """One page."""
        return Page(method, path, handler, needs, section=self.heading, **declared)

    def part(self, path: str, *, needs: AccessRole, template: str, **declared: Any) -> Callable[[H], H]:
        """As `get`, for a part that its page fetches again and again: these requests are not counted."""
        return self.get(path, needs=needs, template=template, is_counted=False, **declared)

    def events(self, path: str, *, needs: AccessRole, **declared: Any) -> Callable[[H], H]:
        """As `get`, for the events by which a page knows that a part of it has changed."""
        return self.get(path, needs=needs, is_counted=False, is_endless=True, **declared)
