"""Who may do what: every route, every role, the own and a foreign archive; then without the code's own checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, select

from ragllava.api.route import Route
from ragllava.api.routes import ALL_ROUTES
from ragllava.api.routes.native.archives import RemovalQuery
from ragllava.api.routes.rerank_bodies import RerankBody, ScoreBody
from ragllava.client import AccessRole, Principal
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import audit, labels
from tests.support.api_server import Front, open_front
from tests.support.archive_places import HOOK, Place, make_place

GUARDED = [route for route in ALL_ROUTES if route.needs is not None]
LISTS = [route for route in GUARDED if route.method == "GET" and not route.of_all]
DELETING = [route for route in GUARDED if route.method == "DELETE"]
NOT_DELETING = [route for route in GUARDED if route.method != "DELETE"]
OF_ARCHIVE = [route for route in GUARDED if route.archive_in]


@dataclass(frozen=True)
class World:
    """A server with one key of each role for the own archive, and the same things in two archives."""

    front: Front
    keys: dict[AccessRole, str]
    own: Place
    foreign: Place


@pytest.fixture(scope="module")
def world(services: Settings, template_database: str) -> Iterator[World]:
    from tests.conftest import own_settings

    with own_settings(services, template_database) as given:
        own = given.model_copy(update={"webhook_hosts": HOOK, "api_open_jobs": 0})
        with open_front(own) as front:
            keys = {role: front.key(role.value, ["stamps"]) for role in AccessRole}
            yield World(front, keys, make_place(front, "stamps"), make_place(front, "coins"))


def example_body(route: Route, place: Place) -> Any:
    """A body that the route accepts, for the routes that need one."""
    asked = {"model": f"ragllava/{place.archive}", "messages": [{"role": "user", "content": "What?"}]}
    bodies: dict[str, Any] = {
        "create_chat_completion": asked,
        "create_response": {"model": f"ragllava/{place.archive}", "input": "What?"},
        "create_batch": {
            "input_file_id": place.paths["file_id"],
            "endpoint": "/v1/chat/completions",
            "metadata": {"archive": place.archive},
        },
        "create_archive": {"name": "new"},
        "rename_archive": {"name": "new"},
        "edit_picture": {"caption": "x", "expected": None},
        "create_binding": {"address": "s3://nowhere/"},
        "ingest_prefix": {"address": "s3://nowhere/"},
        "reindex_archive": {},
        "search_by_picture": {"image_url": "data:image/png;base64,AAAA"},
        "estimate_job": {"archive": place.archive, "questions": ["What?"]},
        "submit_job": {"archive": place.archive, "questions": ["What?"]},
        "store_feedback": {"labels": [{"custom_id": "q", "verdict": "right"}]},
        "dismiss_noisy": {"job": int(place.paths["job_id"])},
        "import_tasks": {"tasks": [{}]},
        "next_cases": {"tab": "one"},
        "renew_leases": {"tab": "one", "cases": [{"job": int(place.paths["job_id"]), "question_no": 0}]},
        "release_leases": {"tab": "one"},
        "save_review": {"question_no": 0, "version": 0, "tab": "one", "save_id": "one"},
        "undo_review": {"tab": "one"},
        "create_training": {"role": "reranker", "archives": [place.archive]},
        "plan_training": {"role": "reranker", "archives": [place.archive]},
        "roll_back_version": {"role": "reranker"},
        "promote_version": {},
        "create_schedule": {"action": "gaps", "cron": "0 3 * * *", "archive": place.archive, "name": "again"},
        "run_maintenance": {"task": "gaps", "archive": place.archive},
        "retry_mailings": {"mailings": [1]},
        "create_webhook": {"url": HOOK, "archive": place.archive},
    }
    if route.body is RerankBody:
        return {"model": f"ragllava/{place.archive}", "query": "a", "documents": ["b"]}
    if route.body is ScoreBody:
        return {"model": f"ragllava/{place.archive}", "queries": "a", "documents": ["b"]}
    return bodies.get(route.name)


def example_query(route: Route) -> str:
    """The query that the route needs; removals are only tried."""
    needed = {"search_archive": "?q=barn", "delete_binding": "?address=s3://nowhere/"}
    return "?dry_run=true" if route.query is RemovalQuery else needed.get(route.name, "")


def call(world: World, route: Route, place: Place, key: str | None) -> tuple[int, Any]:
    path = route.path
    for name, value in place.paths.items():
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    assert "{" not in path, f"say in make_place what {path} means"
    path += example_query(route)
    status, body, _ = world.front.call(route.method, path, key, json=example_body(route, place))
    return status, body


def identify(route: Route) -> str:
    return route.name


@pytest.mark.parametrize("route", GUARDED, ids=identify)
def test_no_route_answers_without_a_key(world: World, route: Route) -> None:
    for key in (None, "rgl_00000000_guessed", "a.b.c", "x" * 5_000):
        status, body = call(world, route, world.own, key)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")


# Deleting comes last, so that the other routes find what they ask for.
@pytest.mark.parametrize("role", list(AccessRole))
@pytest.mark.parametrize("route", [*NOT_DELETING, *DELETING], ids=identify)
def test_each_role_may_do_what_the_route_needs(world: World, route: Route, role: AccessRole) -> None:
    assert route.needs is not None
    place = world.own if route.method != "DELETE" else make_place(world.front, "stamps")
    status, body = call(world, route, place, world.keys[role])
    if role.includes(route.needs) and not route.of_all:
        assert status in (200, 201, 202, 400, 409), body
    else:
        assert (status, body["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize("role", list(AccessRole))
@pytest.mark.parametrize("route", OF_ARCHIVE, ids=identify)
def test_what_belongs_to_another_archive_does_not_exist(world: World, route: Route, role: AccessRole) -> None:
    assert route.needs is not None
    status, body = call(world, route, world.foreign, world.keys[role])
    assert status == (404 if role.includes(route.needs) else 403)
    assert "coins" not in json.dumps(body).replace("'coins'", "").replace("ragllava/coins", "")


@pytest.mark.parametrize("route", OF_ARCHIVE, ids=identify)
def test_the_database_alone_keeps_archives_apart(world: World, route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Principal, "may_see", lambda self, archive_id: True)
    status, _ = call(world, route, world.foreign, world.keys[AccessRole.ADMIN])
    assert status == 404


@pytest.mark.parametrize("is_checked", [True, False])
def test_what_a_form_or_a_task_names_elsewhere_does_not_exist(
    world: World, monkeypatch: pytest.MonkeyPatch, is_checked: bool
) -> None:
    """The routes whose archive stands in a part of a form, or in tasks of Label Studio."""
    if not is_checked:
        monkeypatch.setattr(Principal, "may_see", lambda self, archive_id: True)
    headers = {"authorization": f"Bearer {world.keys[AccessRole.ADMIN]}"}
    [task] = world.front.client.reviews.export_tasks("coins")
    verdict = {"from_name": "verdict", "type": "choices", "value": {"choices": ["right"]}}
    with httpx.Client(base_url=world.front.url, headers=headers, timeout=60) as http:
        sent = http.post("/v1/jobs/file", data={"archive": "coins"}, files={"file": ("q.jsonl", b'{"question": "?"}')})
        assert sent.status_code == 404, sent.text
        stored = http.post("/v1/noisy/tasks", json={"tasks": [task | {"annotations": [{"result": [verdict]}]}]})
    assert stored.status_code in (400, 404) and "no job" in stored.json()["error"]["message"], stored.text
    [label] = in_transaction(world.front.office.engine, verdicts, int(world.foreign.paths["job_id"]))
    assert label == "wrong"


def verdicts(connection: Connection, job_id: int) -> list[str]:
    return list(connection.scalars(select(labels.c.verdict).where(labels.c.job_id == job_id)))


@pytest.mark.parametrize("route", LISTS, ids=identify)
def test_lists_have_nothing_of_another_archive(world: World, route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Principal, "may_see", lambda self, archive_id: True)
    status, body = call(world, route, world.own, world.keys[AccessRole.ADMIN])
    shown = json.dumps(body) if not isinstance(body, bytes) else body.decode(errors="replace")
    assert status == 200, shown
    assert not any(mark in shown for mark in world.foreign.marks)


def test_a_revoked_key_ends_at_once(world: World) -> None:
    key = world.front.key("read")
    assert world.front.call("GET", "/v1/models", key)[0] == 200
    world.front.client.access.revoke_key(key[:12])
    assert world.front.call("GET", "/v1/models", key)[0] == 401


def test_changes_are_audited_with_their_caller(world: World) -> None:
    key = world.front.key("ask", ["stamps"])
    for number, (path, target) in enumerate((("file-none", "file-none"), ("a%00b", r"a\x00b"))):
        world.front.call("DELETE", f"/v1/files/{path}", key, headers={"x-request-id": f"seen-{number}"})
        with world.front.office.engine.connect() as connection:
            row = connection.execute(select(audit).where(audit.c.request_id == f"seen-{number}")).one()
        assert (row.owner, row.action, row.status) == (f"key {key[:12]}", "DELETE /v1/files/{file_id}", 404)
        assert row.target == f"/v1/files/{target}"
