"""Rerank and score: the same relevances as an answer job, in the forms of four kinds of clients."""

from __future__ import annotations

import base64
import gc
import io
from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import pytest
from PIL import Image
from sqlalchemy import func, select

from ragllava.client import Client
from ragllava.stores.schema import requests
from tests.integration.conftest import Postcards
from tests.support.api_server import serving
from tests.support.api_shop import Shop
from tests.support.postcard_gallery import CARDS


@pytest.fixture(scope="module")
def question(postcards: Postcards) -> str:
    first = {card.file_name for card in postcards.archive.postcards[:CARDS]}
    return next(asked.text for asked in postcards.archive.questions if first.issuperset(asked.relevant))


@pytest.fixture
def http(shop: Shop) -> Iterator[httpx.Client]:
    with shop.http("ask", "postcards") as http:
        yield http


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def post(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_relevances_are_those_of_an_answer_job(
    shop: Shop, http: httpx.Client, postcards: Postcards, question: str
) -> None:
    [row] = shop.workshop_rows(question)
    expected = {c.image.image_id: c.relevance for c in row.candidates if c.relevance is not None}
    assert len(expected) == CARDS
    documents: list[dict[str, Any]] = [{"image_id": image_id} for image_id in expected]
    by_id = post(http, "/v1/rerank", {"query": question, "documents": documents})
    ids = list(expected)
    found = {ids[result["index"]]: result["relevance_score"] for result in by_id["results"]}
    assert found == pytest.approx(expected, abs=2e-6)
    scores = [result["relevance_score"] for result in by_id["results"]]
    assert scores == sorted(scores, reverse=True) and all("document" not in result for result in by_id["results"])

    cards = {card.file_name: card for card in postcards.archive.postcards}
    names = {c.image.image_id: c.image.source for c in row.candidates}
    sent = [
        {
            "content": [
                {
                    "type": "image_url",
                    "image_url": {"url": data_url((postcards.written.pictures / names[image_id]).read_bytes())},
                },
                *([{"type": "text", "text": cards[names[image_id]].caption}] if cards[names[image_id]].caption else []),
            ]
        }
        for image_id in ids
    ]
    uploaded = post(http, "/v1/score", {"queries": question, "documents": sent})
    assert [pair["index"] for pair in uploaded["data"]] == list(range(CARDS))
    assert [pair["score"] for pair in uploaded["data"]] == pytest.approx([expected[i] for i in ids], abs=2e-6)
    with shop.workshop.engine.connect() as connection:
        left = connection.scalar(select(func.count()).select_from(requests).where(requests.c.body.is_not(None)))
    assert left == 0  # no caption outlives its request


def test_the_body_is_as_clients_expect_it(http: httpx.Client) -> None:
    body: dict[str, Any] = {
        "model": "ragllava/postcards",
        "query": {"text": "a lighthouse"},
        "documents": ["a lighthouse at sunset", {"text": "a barn"}, {"content": [{"type": "text", "text": "a mill"}]}],
        "return_documents": True,
        "instruction": "find it",
    }
    answers = {path: post(http, path, body) for path in ("/rerank", "/v1/rerank", "/v2/rerank")}
    for path, answer in answers.items():
        assert set(answer) == {"id", "object", "model", "usage", "meta", "results"}, path
        assert answer["usage"]["total_tokens"] > 0 and answer["meta"]["billed_units"] == {"search_units": 1}
        assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
    assert all("document" not in result for result in answers["/rerank"]["results"])
    texts = {result["index"]: result["document"] for result in answers["/v2/rerank"]["results"]}
    assert texts == {0: {"text": "a lighthouse at sunset"}, 1: {"text": "a barn"}, 2: {"text": "a mill"}}
    assert len(post(http, "/rerank", body | {"top_n": 1})["results"]) == 1
    assert len(post(http, "/rerank", body | {"top_n": 0})["results"]) == 3

    tei = post(http, "/rerank", {"query": "a mill", "texts": ["a mill", "a barn"], "return_text": True})
    assert {row["text"] for row in tei} == {"a mill", "a barn"}
    assert all(set(row) == {"index", "score", "text"} for row in tei)


@pytest.mark.parametrize(("left", "right"), [("queries", "documents"), ("data_1", "data_2"), ("text_1", "text_2")])
def test_pairs_are_scored_under_three_names(http: httpx.Client, left: str, right: str) -> None:
    one = post(http, "/score", {left: "a mill", right: "a mill by a river"})
    many = post(http, "/score", {left: "a mill", right: ["a mill by a river", "a barn"]})
    pairs = post(http, "/v1/score", {left: ["a mill", "a mill"], right: ["a mill by a river", "a barn"]})
    assert many["data"] == pairs["data"] and many["data"][0]["index"] == one["data"][0]["index"] == 0
    # A pair alone and the same pair in a batch are computed by other kernels.
    assert many["data"][0]["score"] == pytest.approx(one["data"][0]["score"], abs=2e-6)
    assert http.post("/score", json={left: ["a", "b"], right: ["a", "b", "c"]}).status_code == 400


def test_a_picture_is_never_sent_back(http: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    plain = base64.b64encode(buffer.getvalue()).decode()
    documents = [{"image": data_url(buffer.getvalue())}, {"image": plain}]
    answer = post(http, "/v1/rerank", {"query": "red", "documents": documents, "return_documents": True})
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])
    [first, second] = [result["relevance_score"] for result in answer["results"]]
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"image": "https://example.org/a.png"}, "remote pictures are not fetched"),
        ({"image": "http://169.254.169.254/"}, "remote pictures are not fetched"),
        ({"image": "data:image/png;base64,%%%"}, "not valid base64"),
        ({"image": "data:image/png,abc"}, "must be base64"),
        ({"image": base64.b64encode(b"this is no picture").decode()}, "document 0 cannot be read"),
        ({}, "neither a text nor a picture"),
        ({"content": [{"type": "audio"}]}, "type 'audio'"),
        ({"image_id": 1, "text": "a"}, "image_id alone"),
    ],
)
def test_a_document_that_cannot_be_scored_is_named(http: httpx.Client, document: Any, message: str) -> None:
    answer = http.post("/rerank", json={"query": "red", "documents": [document]})
    assert answer.status_code == 400 and message in answer.json()["error"]["message"], answer.text


def test_wrong_requests_are_refused(http: httpx.Client) -> None:
    fine: dict[str, Any] = {"query": "red", "documents": ["a"]}
    wrong: list[dict[str, Any]] = [
        {"query": " "},
        {"query": {"image": "aaaa"}},
        {"documents": []},
        {"documents": ["a"] * 1_001},
        {"documents": None},
        {"texts": ["a"]},
        {"query": "a\x00b"},
    ]
    for change in wrong:
        assert http.post("/rerank", json=fine | change).status_code == 400, change
    assert http.post("/rerank", json=fine | {"model": "gpt-4"}).json()["error"]["code"] == "model_not_found"
    assert http.post("/rerank", json=fine | {"documents": [{"image_id": 99_999}]}).status_code == 404
    assert http.post("/rerank", json=fine | {"model": "ragllava/coins"}).status_code == 404


def test_a_stored_picture_of_another_archive_does_not_exist(shop: Shop, http: httpx.Client) -> None:
    with shop.http("ask", "coins") as other:
        image_id = http.get("/v1/archives/postcards/pictures", params={"limit": 1}).json()["data"][0]["image_id"]
        body = {"query": "red", "documents": [{"image_id": image_id}]}
        assert other.post("/rerank", json=body).status_code == 404


def test_without_a_worker_a_request_ends_with_504_and_is_cancelled(shop: Shop) -> None:
    shop.hold_up()
    try:
        hurried = shop.workshop.settings.model_copy(update={"api_answer_timeout_s": 0.3})
        headers = {"authorization": f"Bearer {shop.key('ask', 'postcards')}"}
        with (
            Client(hurried, name="hurried", for_tenants=True) as client,
            serving(client) as url,
            httpx.Client(base_url=url, headers=headers, timeout=60) as http,
        ):
            answer = http.post("/rerank", json={"query": "red", "documents": ["a"]})
            assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
            assert http.get("/v1/jobs", params={"kind": "request", "open": True}).json()["data"] == []
            assert all(job["kind"] != "request" for job in http.get("/v1/jobs").json()["data"])
    finally:
        shop.go_on()


def test_the_cohere_client_works(shop: Shop) -> None:
    key = shop.key("ask", "postcards")
    texts = ["a barn in winter", "a lighthouse at sunset"]
    with httpx.Client(timeout=120) as connection:
        v2 = cohere.ClientV2(api_key=key, base_url=shop.url, httpx_client=connection)
        answer = v2.rerank(model="ragllava/postcards", query="a lighthouse", documents=texts, top_n=1)
        assert len(answer.results) == 1 and 0 <= answer.results[0].relevance_score <= 1
        v1 = cohere.Client(api_key=key, base_url=shop.url, httpx_client=connection)
        told = v1.rerank(model="ragllava/postcards", query="a lighthouse", documents=texts, return_documents=True)
        assert {result.document.text for result in told.results if result.document} == set(texts)


LITELLM = [("hosted_vllm", ""), ("jina_ai", "/v1/rerank"), ("cohere", ""), ("infinity", "")]


@pytest.mark.filterwarnings("ignore")  # its own, and of connections that it does not close
@pytest.mark.parametrize(("provider", "path"), LITELLM)
def test_litellm_works(shop: Shop, provider: str, path: str) -> None:
    import litellm

    answer = litellm.rerank(
        model=f"{provider}/ragllava",
        query="a lighthouse",
        documents=["a barn in winter", "a lighthouse at sunset"],
        api_base=shop.url + path,
        api_key=shop.key("ask", "postcards"),
        top_n=2,
    )
    assert answer.results is not None and sorted(result["index"] for result in answer.results) == [0, 1]
    litellm.in_memory_llm_clients_cache.flush_cache()  # type: ignore[no-untyped-call]
    gc.collect()
