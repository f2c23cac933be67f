"""Jobs whose reranker and generator compute at an endpoint: the same answers, and no job where it may not serve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import ServiceUnavailable
from ragllava.models.adapters import AdapterSet
from ragllava.models.bundle import ModelBundle
from ragllava.models.loading import load_mllm
from ragllava.records import AnswerStatus, Role
from ragllava.stages.resources import Resources
from ragllava.stages.results.results import ResultRow
from ragllava.stores.learning import registry
from tests.integration.conftest import Postcards
from tests.support.random_adapters import promote_random_adapter
from tests.support.vllm_server import ModelServer, serving
from tests.support.workshop import PAPER, Workshop


@pytest.fixture
def here(workshop: Workshop, postcards: Postcards, models: ModelBundle, tmp_path: Path) -> Iterator[Workshop]:
    """A worker that computes itself, with an archive of 60 postcards, in a home of its own."""
    desk = workshop.with_settings(home=tmp_path / "home")
    desk.ingest(postcards.written.pictures, captions=postcards.written.captions)
    with desk.engine.begin() as connection:
        registry.ensure_champions(connection, "mini", desk.resources.base_versions())
    yield desk
    for role in Role:
        models.apply_adapter(role, None, None)


@pytest.fixture
def server(models: ModelBundle) -> Iterator[ModelServer]:
    """An endpoint with the mini model, in its own copy: the worker's may wear an adapter."""
    settings = models.settings
    plan = models.reranker.mllm._plan
    with serving(ModelServer(load_mllm(models.profile, plan, settings))) as server:
        yield server


def at_endpoint(here: Workshop, server: ModelServer) -> Workshop:
    """The same worker with the endpoint in its settings."""
    settings = here.settings.model_copy(update={"vllm_url": server.url, "torch_threads": 1, "device": "cpu"})
    there = replace(here, settings=settings, resources=Resources(settings))
    here.opened.append(there.resources)
    return there


def seen(rows: list[ResultRow]) -> list[tuple[object, ...]]:
    return [(row.status, row.answer, row.models, [c.image.source for c in row.evidence]) for row in rows]


@pytest.mark.parametrize(("options", "all_reranked"), [(PAPER, True), ({}, False)], ids=["paper", "default"])
def test_a_job_ends_as_if_the_worker_had_computed_itself(
    here: Workshop, postcards: Postcards, server: ModelServer, options: dict[str, Any], all_reranked: bool
) -> None:
    texts = [question.text for question in postcards.archive.questions[:4]] + ["What is the meaning of life?"]
    there = at_endpoint(here, server)
    remote, local = there.ask(texts, top_k=8, **options), here.ask(texts, top_k=8, **options)
    assert seen(remote) == seen(local)
    assert {row.status for row in local} == {AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE}
    for row, right in zip(remote, local, strict=True):
        assert [c.relevance for c in row.candidates] == pytest.approx([c.relevance for c in right.candidates], abs=1e-5)
        assert row.confidence == pytest.approx(right.confidence, abs=1e-5)
    assert all(c.relevance is not None for row in remote for c in row.candidates) == all_reranked
    assert not all_reranked or len(server.bodies) > len(texts) * 8, "the endpoint has reranked every candidate"


def test_a_champion_that_the_endpoint_does_not_serve_refuses_the_job(
    here: Workshop, postcards: Postcards, server: ModelServer
) -> None:
    text = postcards.archive.questions[0].text
    promote_random_adapter(here, Role.RERANKER, "ranker-1", seed=1)
    there = at_endpoint(here, server)
    [row] = there.ask([text], top_k=3)
    assert row.status is AnswerStatus.FAILED and row.error is not None
    assert row.error.startswith(
        f"the champion reranker cannot be used: the endpoint {server.url} does not serve ranker-1; "
    )
    assert row.error.endswith("go back with `ragllava models rollback --role reranker`")

    adapter = AdapterSet(server.mllm, here.settings.home / "cache").add("any", here.settings.home / "ranker-1")
    server.adapters = {"ranker-1": adapter}
    [served], [right] = there.ask([text], top_k=3), here.ask([text], top_k=3)
    assert served.models is not None and served.models["reranker"] == "ranker-1"
    assert [c.relevance for c in served.candidates] == pytest.approx([c.relevance for c in right.candidates], abs=1e-5)


def test_a_worker_waits_for_an_endpoint_that_is_away(here: Workshop, postcards: Postcards, server: ModelServer) -> None:
    there = at_endpoint(here, server)
    server.key = "another"
    with pytest.raises(ServiceUnavailable, match="RAGLLAVA_VLLM_API_KEY"):
        there.resources.models.apply_adapter(Role.RERANKER, None, None)
    job = there.submit([postcards.archive.questions[0].text], top_k=3)
    there.run()
    assert there.rows(job.job_id) == [], "it is tried again"
    server.key = None
    there.let_wait_end()
    there.run()
    [row] = there.rows(job.job_id)
    assert row.status is AnswerStatus.ANSWERED
