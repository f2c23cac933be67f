"""The description of the API, and that the server answers as it says, to what fits it and to what does not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from schemathesis import APIOperation, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ragllava.api.description import describe
from ragllava.api.routes import ALL_ROUTES
from ragllava.settings import Settings
from tests.conftest import own_settings
from tests.support.api_server import Front, open_front

Operation = APIOperation[Any, Any, Any, Any]
# By hand, `SCHEMATHESIS_EXAMPLES=200 pytest tests/integration/api/native/test_description.py` tries more.
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "3"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = describe(ALL_ROUTES)
DESCRIBED = list(schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
OPERATIONS = [found.ok() for found in DESCRIBED if isinstance(found, Ok)]


@pytest.fixture(scope="module")
def described(services: Settings, template_database: str) -> Iterator[Front]:
    with own_settings(services, template_database) as given:
        chosen = {"api_open_jobs": 0, "webhook_hosts": "https://example.org"}
        with open_front(given.model_copy(update=chosen)) as front:
            yield front


def test_every_operation_can_be_read() -> None:
    assert DESCRIBED and len(OPERATIONS) == len(DESCRIBED)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_answer_is_as_declared(described: Front, operation: Operation, mode: GenerationMode) -> None:
    cases = operation.as_strategy(generation_mode=mode)
    headers = {"authorization": f"Bearer {described.key('admin')}"}

    @hypothesis.settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @hypothesis.given(case=cases)
    def run(case: schemathesis.Case[Any]) -> None:
        with requests.Session() as session:
            response = case.call(base_url=described.url, session=session, headers=headers, timeout=180)
        case.validate_response(response, checks=CHECKS)

    has_input = operation.path_parameters or operation.query or operation.body
    if mode is GenerationMode.NEGATIVE and not has_input:
        pytest.skip("nothing can be wrong with it")
    run()


def test_the_server_serves_the_description(described: Front) -> None:
    status, document, _ = described.call("GET", "/openapi.json", None)
    assert status == 200 and document == json.loads(json.dumps(DOCUMENT))
    assert document["openapi"].startswith("3.1")
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert named == {(route.method, route.path.replace(":path", "")) for route in ALL_ROUTES}
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


class _Page(HTMLParser):
    """Notes what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.anchors = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.anchors += tag == "details"
        if tag in ("script", "link", "img", "iframe", "object") or any(name.startswith("on") for name in names):
            self.loads.append(tag)


def test_the_page_has_every_route_and_loads_nothing(described: Front) -> None:
    status, page, headers = described.call("GET", "/docs", None)
    assert status == 200 and headers["content-security-policy"].startswith("default-src 'none'")
    parser = _Page()
    parser.feed(page.decode())
    assert parser.loads == [] and parser.anchors == len(ALL_ROUTES)
    assert "//" not in page.decode().replace("https://hooks", "").split("</style>")[0]
