"""Requests that were damaged on the way: no fault of the server, nothing leaks, nothing is stored in part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from ragllava.api.route import Route
from ragllava.api.routes import ALL_ROUTES
from ragllava.jobs.kinds import KINDS
from ragllava.settings import Settings
from ragllava.stores.schema import batches, jobs, uploads
from tests.conftest import own_settings
from tests.integration.api.test_access import example_body
from tests.support.api_server import Front, open_front
from tests.support.archive_places import HOOK, Place, make_place

# By hand, `MUTATED_REQUESTS=20000 pytest tests/integration/api/native/test_mutated_requests.py` tries more.
EXAMPLES = int(os.environ.get("MUTATED_REQUESTS", "250"))
SECRETS = ("Traceback", "psycopg", "sqlalchemy", "SELECT ", "INSERT ", "/home/", "site-packages", "PASSWORD", "whsec_")

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=40)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))
SEGMENTS = st.sampled_from(["0", "-1", "99999999999999999999", "%00", "..", "%2e%2e", "'", "%F0%9F%92%A9", "x" * 600])
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "range", "if-none-match", "idempotency-key", "last-event-id", "x-request-id"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(str.strip),
    max_size=3,
)


@dataclass(frozen=True)
class Target:
    """A running server with one archive that the key sees and one that it does not."""

    front: Front
    own: Place
    foreign: Place
    key: str


@pytest.fixture(scope="module")
def target(services: Settings, template_database: str) -> Iterator[Target]:
    with own_settings(services, template_database) as given:
        chosen = {"webhook_hosts": HOOK, "api_open_jobs": 0}
        with open_front(given.model_copy(update=chosen)) as front:
            own, foreign = make_place(front, "stamps"), make_place(front, "coins")
            yield Target(front, own, foreign, front.key("admin", ["stamps"]))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Route, str, bytes, dict[str, str]]:
    """A route, a path with the names of parts, a body and headers, of which some are not as they should be."""
    route = draw(st.sampled_from(ALL_ROUTES))
    path = route.path.replace(":path", "")
    while "{" in path and draw(st.integers(0, 3)) == 0:
        begin, end = path.index("{"), path.index("}")
        path = path[:begin] + draw(SEGMENTS) + path[end + 1 :]
    query = draw(st.just("") | st.dictionaries(st.sampled_from(sorted(route.query.model_fields) or ["q"]), SCALARS))
    return route, path, json.dumps(query).encode() if isinstance(query, dict) else b"", draw(HEADERS)


def mutate(draw: st.DataObject, value: Any) -> Any:
    """The JSON value with one place of it replaced, left out, or added to."""
    if isinstance(value, dict) and value and draw.draw(st.booleans()):
        name = draw.draw(st.sampled_from(sorted(value)))
        changed = dict(value)
        if draw.draw(st.integers(0, 4)) == 0:
            del changed[name]
        else:
            changed[name] = mutate(draw, value[name])
        return changed
    if isinstance(value, list) and value and draw.draw(st.booleans()):
        place = draw.draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutate(draw, value[place]), *value[place + 1 :]]
    return draw.draw(VALUES)


def encoded(draw: st.DataObject, body: Any) -> bytes:
    """As JSON, perhaps cut off or with a byte exchanged."""
    data = json.dumps(body).encode()
    how = draw.draw(st.integers(0, 9))
    if how == 0:
        return data[: draw.draw(st.integers(0, len(data)))]
    if how == 1 and data:
        place = draw.draw(st.integers(0, len(data) - 1))
        return data[:place] + bytes([draw.draw(st.integers(0, 255))]) + data[place + 1 :]
    return data


def test_damaged_requests_do_no_harm(target: Target) -> None:
    headers = {"authorization": f"Bearer {target.key}"}
    with httpx.Client(base_url=target.front.url, headers=headers, timeout=180) as http:

        @hypothesis.settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
        @hypothesis.given(damaged(), st.data())
        def run(request: tuple[Route, str, bytes, dict[str, str]], data: st.DataObject) -> None:
            route, path, query, sent = request
            place = target.own if data.draw(st.booleans()) else target.foreign
            for name, value in place.paths.items():
                path = path.replace(f"{{{name}}}", value)
            example = example_body(route, place)
            body = encoded(data, mutate(data, example)) if example is not None else b""
            params = {name: str(value) for name, value in json.loads(query or b"{}").items()}
            dangerous = {"remove_archive"}  # it would take what the next examples need
            if route.name in dangerous:
                params["dry_run"] = "true"
            response = http.request(route.method, path, content=body, params=params, headers=sent)
            check(response, target)

        run()
    assert_nothing_is_half_stored(target.front)


def check(response: httpx.Response, target: Target) -> None:
    """Raises AssertionError for a fault of the server, and for what the caller must not see."""
    shown = response.text
    assert response.status_code < 500, (response.request, response.request.content[:300], shown)
    if response.status_code >= 400 and response.headers.get("content-type") == "application/json":
        assert set(response.json()) == {"error"} and response.json()["error"]["message"]
    named = str(response.request.url) + response.request.content.decode(errors="replace")  # which errors repeat
    assert not any(mark in shown for mark in target.foreign.marks if mark not in named), response.request
    assert not any(secret in shown for secret in SECRETS if secret != "whsec_" or "secret" not in shown), shown[:500]


def assert_nothing_is_half_stored(front: Front) -> None:
    """Every job has its inputs, every file its bytes, every batch its file."""
    with front.office.engine.connect() as connection:
        for kind in KINDS.values():
            totals = kind.inputs.totals().subquery()
            query = select(jobs.c.id, jobs.c.total, totals.c.inputs).outerjoin_from(
                jobs, totals, totals.c.job_id == jobs.c.id
            )
            for row in connection.execute(query.where(jobs.c.kind == kind.name)):
                assert row.total == (row.inputs or 0), (kind.name, row)
        for key in connection.scalars(select(uploads.c.object_key)):
            assert front.office.objects.exists(key), key
        orphans = select(func.count()).select_from(batches).where(batches.c.input_file_id.not_in(select(uploads.c.id)))
        assert connection.scalar(orphans.where(batches.c.ended_at.is_(None))) == 0
        assert connection.scalar(text("SELECT count(*) FROM blobs WHERE state = 'deleting'")) == 0
