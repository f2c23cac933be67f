"""Who may see and do what: every page, every role, the own and a foreign archive; forms that were not meant."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from ragllava.client import AccessRole, Limits, NewKey, ScheduleAction, ScheduleRequest
from ragllava.console.cookies import MESSAGE, SIGN_IN
from ragllava.console.page import Page
from ragllava.console.pages import ALL_PAGES
from ragllava.stores.schema import audit, sign_ins
from tests.support.api_server import Front
from tests.support.archive_places import Place, make_place
from tests.support.console_client import Reader, reading

GUARDED = [page for page in ALL_PAGES if page.needs is not None]
CHANGES = [page for page in GUARDED if page.method == "POST"]
OF_ARCHIVE = [page for page in GUARDED if page.archive_in]
# What a page's form needs besides what is empty in it; by the name of the handler.
FORMS: dict[str, dict[str, Any]] = {
    "add": {"action": "gaps", "cron": "0 3 * * *", "archive": "{archive}", "name": "again"},
    "change": {"cron": "0 4 * * *"},
    "start_task": {"task": "gaps", "archive": "{archive}"},
    "make_key": {"name": "from the console"},
    "check_file": {"archive": "{archive}"},
    "submit_file": {"archive": "{archive}"},
    "bind": {"address": "s3://elsewhere/x/"},
    "unbind": {"address": "s3://elsewhere/x/"},
    "ask": {"archive": "{archive}", "question": "What?"},
    "give_verdict": {"verdict": "right"},
    "take_cases": {"archive": "{archive}", "tab": "one"},
    "save_review": {
        "archive": "{archive}",
        "job": "{job_id}",
        "question_no": 0,
        "version": 0,
        "tab": "one",
        "save_id": "one",
        "verdict": "right",
    },
    "undo_review": {"archive": "{archive}", "tab": "one"},
    "renew_leases": {"archive": "{archive}", "tab": "one", "held": "{job_id}-0"},
    "release_leases": {"archive": "{archive}", "tab": "one"},
    "train": {"role": "reranker", "archives": "{archive}", "what": "plan"},
}
FILES = {"file": ("q.jsonl", b'{"question": "What?"}')}
LAST = ("sign_out", "delete_schedule", "revoke_key", "remove_picture")  # so that the other pages find what they ask for


@dataclass(frozen=True)
class World:
    """A server, somebody of each role for the own archive, an administrator of all, and the same in two archives."""

    front: Front
    readers: dict[AccessRole, Reader]
    admin: Reader
    own: Place
    foreign: Place


@pytest.fixture(scope="module")
def world(front: Front) -> Iterator[World]:
    with ExitStack() as stack:
        readers = {
            role: stack.enter_context(reading(front.url, front.key(role.value, ["stamps"], open_jobs=0)))
            for role in AccessRole
        }
        admin = stack.enter_context(reading(front.url, front.key("admin", open_jobs=0)))
        yield World(front, readers, admin, make_place(front, "stamps"), make_place(front, "coins"))


def call(reader: Reader, page: Page, place: Place) -> httpx.Response:
    path = page.path
    for name, value in place.paths.items():
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    if page.name == "revoke_key":
        path = path.replace("{prefix}", "rgl_00000000")
    assert "{" not in path, f"say in tests/support/archive_places.py what {path} means"
    if page.is_endless:
        return first_event(reader, path)
    if page.method == "GET":
        return reader.get(path)
    form = {
        name: value.format(**place.paths) if isinstance(value, str) else value
        for name, value in FORMS.get(page.name, {}).items()
    }
    return reader.post(path, form, files=FILES) if page.upload else reader.post(path, form)


def first_event(reader: Reader, path: str) -> httpx.Response:
    """What comes before the browser leaves."""
    with reader.http.stream("GET", path) as answer:
        if answer.status_code != 200:
            answer.read()
            return answer
        return httpx.Response(200, text=next(answer.iter_text()), headers=answer.headers, request=answer.request)


def identify(page: Page) -> str:
    return page.name


def in_order(pages: list[Page]) -> list[Page]:
    return sorted(pages, key=lambda page: page.name in LAST)


@pytest.mark.parametrize("page", GUARDED, ids=identify)
def test_no_page_is_shown_to_who_is_not_signed_in(world: World, page: Page) -> None:
    with reading(world.front.url, None) as stranger:
        for secret in (None, "guessed", "x" * 3_000):
            if secret is not None:
                stranger.http.cookies.set(SIGN_IN, secret, path="/console")
            answer = call(stranger, page, world.own)
            assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/console/sign-in")


@pytest.mark.parametrize("role", list(AccessRole))
@pytest.mark.parametrize("page", in_order([page for page in GUARDED if page.name != "sign_out"]), ids=identify)
def test_each_role_may_do_what_the_page_needs(world: World, page: Page, role: AccessRole) -> None:
    assert page.needs is not None
    answer = call(world.readers[role], page, world.own)
    if role.includes(page.needs) and not page.of_all:
        assert answer.status_code in (200, 201, 303, 400, 404 if page.name == "delete_schedule" else 409, 409), (
            answer.text
        )
    else:
        assert answer.status_code == 403


@pytest.mark.parametrize("role", list(AccessRole))
@pytest.mark.parametrize("page", OF_ARCHIVE, ids=identify)
def test_what_belongs_to_another_archive_does_not_exist(world: World, page: Page, role: AccessRole) -> None:
    assert page.needs is not None
    answer = call(world.readers[role], page, world.foreign)
    assert answer.status_code == (404 if role.includes(page.needs) else 403)
    assert not any(mark in answer.text for mark in world.foreign.marks if mark not in answer.request.url.path)


@pytest.mark.parametrize("page", [page for page in GUARDED if page.method == "GET" and not page.of_all], ids=identify)
def test_lists_show_nothing_of_another_archive(world: World, page: Page) -> None:
    answer = call(world.readers[AccessRole.ADMIN], page, world.own)
    if answer.headers.get("content-type", "").startswith("text/html"):
        assert not any(mark in answer.text for mark in ("coins", *world.foreign.marks))


@pytest.mark.parametrize("role", list(AccessRole))
def test_the_navigation_has_what_the_role_may_use(world: World, role: AccessRole) -> None:
    listed = set(re.findall(r'<li><a href="([^"]+)"', world.readers[role].get("/console").text))
    expected = {page.path for page in GUARDED if page.menu and role.includes(page.needs) and not page.of_all}  # type: ignore[arg-type]
    assert listed == expected
    assert all(world.readers[role].get(path).status_code == 200 for path in listed)


def test_only_an_administrator_of_all_archives_reads_keys_and_audit(world: World) -> None:
    for path in ("/console/keys", "/console/audit"):
        assert world.admin.get(path).status_code == 200
        assert world.readers[AccessRole.ADMIN].get(path).status_code == 403


@pytest.mark.parametrize("page", [page for page in ALL_PAGES if page.method == "POST"], ids=identify)
@pytest.mark.parametrize("origin", ["https://evil.example", "null", None])
def test_another_site_changes_nothing(world: World, page: Page, origin: str | None) -> None:
    http, path = world.admin.http, re.sub(r"\{\w+(:\w+)?\}", "1", page.path)
    headers = {"origin": origin} if origin else {}
    answer = http.post(path, data={"csrf": world.admin.csrf, "theme": "dark"}, headers=headers)
    assert (answer.status_code, "another site" in answer.text) == (403, True)


@pytest.mark.parametrize("page", CHANGES, ids=identify)
def test_a_form_without_the_token_of_the_sign_in_changes_nothing(world: World, page: Page) -> None:
    http, path = world.admin.http, re.sub(r"\{\w+(:\w+)?\}", "1", page.path)
    other = world.readers[AccessRole.ADMIN].csrf
    for token in (None, "", "0" * 64, other):
        data = {} if token is None else {"csrf": token}
        options: dict[str, Any] = {"files": FILES} if page.upload else {}
        answer = http.post(path, data=data, headers={"origin": world.front.url}, **options)
        assert (answer.status_code, "another sign-in" in answer.text) == (403, True)


def test_a_change_and_its_refusal_are_noted_and_reading_is_not(world: World) -> None:
    name = f"noted-{uuid.uuid4().hex[:6]}"
    form = {"action": "gaps", "cron": "0 3 * * *", "archive": "stamps", "name": name}
    assert world.admin.post("/console/schedules", form).status_code == 303
    assert world.readers[AccessRole.READ].post("/console/schedules", form).status_code == 403
    world.admin.get("/console/schedules")
    with world.front.office.engine.connect() as connection:
        newest = select(audit.c.action, audit.c.status).order_by(audit.c.id.desc()).limit(2)
        noted = {tuple(row) for row in connection.execute(newest)}
    assert noted == {("POST /console/schedules", 303), ("POST /console/schedules", 403)}


def test_every_answer_has_the_headers_that_make_browsers_careful(world: World) -> None:
    for path in ("/console", "/console/sign-in", "/console/nowhere", "/console/keys"):
        headers = world.readers[AccessRole.READ].get(path).headers
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_a_secret_is_stored_as_its_hash_and_ends_with_its_key(front: Front) -> None:
    key = front.key("read")
    with reading(front.url, key) as reader:
        secret = reader.http.cookies[SIGN_IN]
        with front.office.engine.connect() as connection:
            assert not connection.scalar(select(func.count()).where(sign_ins.c.sha256 == secret))
        front.client.access.revoke_key("_".join(key.split("_")[:2]))
        assert reader.get("/console").status_code == 303


@pytest.mark.parametrize("change", ["seen_at = now() - interval '12 hours 1 minute'", "ends_at = now()"])
def test_a_sign_in_ends_when_it_was_idle_or_its_time_is_over(front: Front, change: str) -> None:
    with reading(front.url, front.key("read")) as reader:
        assert reader.get("/console").status_code == 200
        with front.office.engine.begin() as connection:
            own = {"digest": hashlib.sha256(reader.http.cookies[SIGN_IN].encode()).hexdigest()}
            connection.execute(text(f"UPDATE sign_ins SET {change} WHERE sha256 = :digest"), own)
        assert reader.get("/console").status_code == 303


def test_signing_out_ends_the_sign_in_also_for_a_copy_of_the_cookie(front: Front) -> None:
    with reading(front.url, front.key("read")) as reader:
        secret = reader.http.cookies[SIGN_IN]
        reader.post("/console/sign-out")
        reader.http.cookies.set(SIGN_IN, secret, path="/console")
        assert reader.get("/console").status_code == 303


def test_a_link_signs_in_once_and_soon_by_its_button_alone(front: Front) -> None:
    path = f"/console/sign-in/{front.client.access.make_sign_in_link()}"
    with reading(front.url, None) as reader, reading(front.url, None) as late:
        for _ in range(2):  # mail scanners and previews open it, too
            shown = reader.get(f"{path}?next=/console/jobs")
            assert shown.status_code == 200 and f'action="{path}"' in shown.text and "/console/jobs" in shown.text
            assert SIGN_IN not in reader.http.cookies
        entered = reader.post(path, {"next": "/console/jobs"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/console/jobs")
        assert "role admin" in reader.get("/console").text
        assert late.post(path).status_code == 401
        old = front.client.access.make_sign_in_link()
        with front.office.engine.begin() as connection:
            connection.execute(text("UPDATE sign_in_links SET ends_at = now()"))
        assert late.post(f"/console/sign-in/{old}").status_code == 401
        assert late.get("/console").status_code == 303


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example/console", "/console\\evil", "/console/\nx"])
def test_nobody_is_led_elsewhere_after_signing_in(front: Front, to: str) -> None:
    with reading(front.url, None) as reader:
        answer = reader.post("/console/sign-in", {"key": front.key("read"), "next": to})
        assert answer.status_code == 400


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(front: Front) -> None:
    with reading(front.url, None) as reader:
        answer = reader.post("/console/sign-in", {"key": front.key("read")})
        cookie = answer.headers["set-cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/console")) and "Secure" not in cookie
        assert len(reader.http.cookies[SIGN_IN]) >= 43  # 256 bits
        behind_tls = reader.post("/console/sign-in", {"key": front.key("read")}, headers={"x-forwarded-proto": "https"})
        assert "Secure" in behind_tls.headers["set-cookie"]


def test_parts_that_a_page_fetches_again_use_up_no_requests(front: Front) -> None:
    key, _ = front.client.access.create_key(NewKey("few", AccessRole.READ, None, None, Limits(requests_per_minute=3)))
    job = front.client.questions.submit(["What?"], "stamps").job_id
    with reading(front.url, key) as reader:
        for path in ("/console/overview/state", f"/console/jobs/{job}/state"):
            assert {reader.get(path).status_code for _ in range(4)} == {200}
        assert [reader.get("/console").status_code for _ in range(4)][-1] == 429


def test_a_message_is_shown_once(world: World) -> None:
    reader = world.readers[AccessRole.ADMIN]
    reader.post("/console/maintenance", {"task": "gaps", "archive": "stamps"})
    assert MESSAGE in reader.http.cookies
    assert "runs the task gaps" in reader.get("/console").text
    assert "runs the task gaps" not in reader.get("/console").text


def test_files_are_kept_for_good_under_names_of_their_hashes(front: Front) -> None:
    with reading(front.url, None) as reader:
        page = reader.get("/console/sign-in").text
        for address in re.findall(r'(?:href|src)="(/console/static/[^"]+)"', page):
            file = reader.get(address)
            assert (file.status_code, "immutable" in file.headers["cache-control"]) == (200, True)
            assert reader.get(address, **{"if-none-match": file.headers["etag"]}).status_code == 304
        assert reader.get("/console/static/console.css").status_code == 404


def test_browsers_are_led_to_the_console_and_programs_are_not(front: Front) -> None:
    with reading(front.url, None) as reader:
        assert reader.get("/", accept="text/html").headers["location"] == "/console"
        assert reader.get("/", accept="application/json").status_code == 404


def test_a_bound_administrator_makes_no_key_even_past_the_checks_of_the_code(front: Front) -> None:
    """The database refuses it: row-level security."""
    from ragllava.client import Client, NewKey, Principal, acting
    from ragllava.errors import AccessDenied, RagllavaError

    with Client(front.settings, for_tenants=True) as client:
        bound = Principal("x", AccessRole.ADMIN, frozenset({1}))
        reads_all = Principal("x", AccessRole.READ, None)
        for principal in (bound, reads_all):
            with acting(principal.scope):
                with pytest.raises((AccessDenied, RagllavaError)):
                    client.access.create_key(NewKey("mine", AccessRole.ADMIN))
                assert client.access.list_audit() == []


def test_a_schedule_of_the_own_archive_cannot_lead_to_all(front: Front) -> None:
    front.client.schedules.add(ScheduleRequest(ScheduleAction.GAPS, "0 3 * * *", "stamps", name="bound"))
    with reading(front.url, front.key("admin", ["stamps"])) as reader:
        answer = reader.post("/console/schedules", {"action": "gaps", "cron": "0 3 * * *", "name": "all-of-them"})
        assert answer.status_code == 403
