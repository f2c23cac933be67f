"""One trace from the HTTP request of a caller through the queue to the generator, as a real receiver gets it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ragllava import tracing
from ragllava.client import Client
from tests.conftest import environment_of
from tests.integration.api.test_server import process
from tests.integration.conftest import Postcards
from tests.support.api_server import make_key
from tests.support.postcard_gallery import cards
from tests.support.waiting import wait_for
from tests.support.web_receiver import Receiver, receiving
from tests.support.workshop import ARCHIVE, Workshop

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield receiver
        tracing.end()


def spans(receiver: Receiver) -> list[Any]:
    """All spans that were received."""
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in receiver.received]
    scopes = (scope for request in requests for each in request.resource_spans for scope in each.scope_spans)
    return [span for scope in scopes for span in scope.spans]


def test_one_trace_follows_a_question_from_the_request_to_the_generator(
    workshop: Workshop, postcards: Postcards, receiver: Receiver
) -> None:
    workshop.ingest_files(cards(postcards, 0, 4))
    [question, *_] = [asked.text for asked in postcards.archive.questions]
    with Client(workshop.settings) as client:
        key = make_key(client, "ask")
    environment = environment_of(workshop.settings) | {"RAGLLAVA_METRICS_PORT": "0"}
    with process(environment) as (url, _):
        headers = {"authorization": f"Bearer {key}", "traceparent": f"00-{TRACE}-{CALLER}-01"}
        body = {"archive": ARCHIVE, "questions": [question]}
        job_id = httpx.post(f"{url}/v1/jobs", json=body, headers=headers, timeout=60).json()["job"]
        wait_for("the span of the request", lambda: bool(spans(receiver)), 60)
    untraced = workshop.submit([question]).job_id
    tracing.begin("ragllava worker")
    workshop.run()
    tracing.end()
    assert all(workshop.job(each).is_final for each in (job_id, untraced))

    received = spans(receiver)
    assert {span.trace_id.hex() for span in received} == {TRACE}
    [asked], [shard] = ([each for each in received if each.name == name] for name in ("POST /v1/jobs", "answer shard"))
    assert asked.parent_span_id.hex() == CALLER and shard.parent_span_id == asked.span_id
    stages = {span.name for span in received if span.parent_span_id == shard.span_id}
    assert stages == {"retrieve", "rerank", "generate"} and len(received) >= 5
    assert {fact.key: fact.value.int_value for fact in shard.attributes}["ragllava.job"] == job_id
    assert not [body for _, body in receiver.received if question.encode() in body]
