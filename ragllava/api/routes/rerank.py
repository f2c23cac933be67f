"""`/rerank` and `/score`, as clients of vLLM, Jina, Cohere and TEI use them; the answer workers compute."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from starlette.responses import JSONResponse, Response

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Answer, Call, NoQuery, Routes
from ragllava.api.routes.openai_models import archive_of_model
from ragllava.api.routes.rerank_bodies import (
    MAX_BODY_BYTES,
    Item,
    Parsed,
    RerankBody,
    ScoreBody,
    parse_item,
    parse_query,
)
from ragllava.client import AccessRole, Document, Scores
from ragllava.errors import AccessDenied

routes = Routes("Rerank and score")

_DECIMALS = 6  # as result files have
_DECLARED: dict[str, Any] = {"needs": AccessRole.ASK, "max_body_bytes": MAX_BODY_BYTES, "archive_in": "body:model"}


class Usage(Answer):
    """About how many tokens the reranker has read."""

    prompt_tokens: int
    total_tokens: int


class TextDocument(Answer):
    """A document that is a text; pictures are never sent back."""

    text: str


class RerankedDocument(Answer):
    """`index` is the place among the documents that were sent."""

    index: int
    relevance_score: float
    document: TextDocument | None = None


class ApiVersion(Answer):
    """As Cohere's clients expect it."""

    version: str


class BilledUnits(Answer):
    """As Cohere's clients expect it."""

    search_units: int = 1


class Meta(Answer):
    """As Cohere's clients expect it."""

    api_version: ApiVersion
    billed_units: BilledUnits = BilledUnits()


class RerankAnswer(Answer):
    """The documents, the most relevant first; `relevance_score` is the reranker's P("Yes")."""

    id: str
    object: Literal["rerank"] = "rerank"
    model: str
    usage: Usage
    meta: Meta
    results: list[RerankedDocument]


class TeiResult(Answer):
    """A document for clients of TEI."""

    index: int
    score: float
    text: str | None = None


class ScoreObject(Answer):
    """The relevance of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreAnswer(Answer):
    """The relevances, in the order of the pairs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreObject]
    usage: Usage


@routes.post("/rerank", body=RerankBody, answer=RerankAnswer, answer_also=list[TeiResult], **_DECLARED)
async def rerank(call: Call[NoQuery, RerankBody]) -> Response:
    """Order documents by their relevance for a query: texts, pictures, or stored pictures by `image_id`.

    With `texts` the answer is that of TEI: a list of index and score.
    """
    return await _rerank(call, "2", may_echo=False)


@routes.post("/v1/rerank", body=RerankBody, answer=RerankAnswer, answer_also=list[TeiResult], **_DECLARED)
async def rerank_v1(call: Call[NoQuery, RerankBody]) -> Response:
    """As `/rerank`; texts come back with `return_documents`."""
    return await _rerank(call, "1", may_echo=True)


@routes.post("/v2/rerank", body=RerankBody, answer=RerankAnswer, answer_also=list[TeiResult], **_DECLARED)
async def rerank_v2(call: Call[NoQuery, RerankBody]) -> Response:
    """As `/rerank`; texts come back with `return_documents`."""
    return await _rerank(call, "2", may_echo=True)


@routes.post("/score", body=ScoreBody, answer=ScoreAnswer, **_DECLARED)
async def score(call: Call[NoQuery, ScoreBody]) -> ScoreAnswer:
    """The relevance of pairs: one text and many documents, or as many on both sides."""
    return await _score(call)


@routes.post("/v1/score", body=ScoreBody, answer=ScoreAnswer, **_DECLARED)
async def score_v1(call: Call[NoQuery, ScoreBody]) -> ScoreAnswer:
    """As `/score`."""
    return await _score(call)


async def _rerank(call: Call[NoQuery, RerankBody], version: str, *, may_echo: bool) -> Response:
    body = call.body
    items: Sequence[Item] = body.texts or body.documents or ()
    if not items or (body.texts and body.documents):
        raise InvalidRequest("give documents, or texts", "documents")
    query = parse_query(body.query)
    parsed = [parse_item(item, f"documents.{place}", body.max_tokens_per_doc) for place, item in enumerate(items)]
    scores = await _scored(call, [(query, document) for document in parsed])
    best = sorted(range(len(parsed)), key=lambda place: (-scores.relevances[place], place))[: body.top_n or None]
    values = [round(value, _DECIMALS) for value in scores.relevances]
    if body.texts:
        echoed = body.return_text
        found = [{"index": n, "score": values[n]} | ({"text": body.texts[n]} if echoed else {}) for n in best]
        return JSONResponse(found)
    answer = RerankAnswer(
        id=f"rerank-{uuid.uuid4().hex}",
        model=body.model,
        usage=_usage(scores),
        meta=Meta(api_version=ApiVersion(version=version)),
        results=[
            RerankedDocument(
                index=place,
                relevance_score=values[place],
                document=_echo(parsed[place]) if may_echo and body.return_documents else None,
            )
            for place in best
        ],
    )
    # A document that is null breaks clients: it is left out.
    return JSONResponse(answer.model_dump(mode="json", exclude_none=True))


async def _score(call: Call[NoQuery, ScoreBody]) -> ScoreAnswer:
    left, right = call.body.sides
    queries = [parse_query(item) for item in left]
    documents = [parse_item(item, f"documents.{n}", call.body.max_tokens_per_doc) for n, item in enumerate(right)]
    scores = await _scored(call, list(zip(queries, documents, strict=True)))
    return ScoreAnswer(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=call.body.model,
        data=[ScoreObject(index=place, score=round(value, _DECIMALS)) for place, value in enumerate(scores.relevances)],
        usage=_usage(scores),
    )


async def _scored(call: Call[NoQuery, Any], pairs: Sequence[tuple[str, Parsed]]) -> Scores:
    archive_id, documents = await call.run(_prepare, call, pairs)
    asked = [(query, document) for (query, _), document in zip(pairs, documents, strict=True)]
    timeout_s = call.settings.api_answer_timeout_s
    return await call.wait(call.client.requests.relevances, asked, archive_id, timeout_s)


def _prepare(call: Call[NoQuery, Any], pairs: Sequence[tuple[str, Parsed]]) -> tuple[int | None, list[Document]]:
    """Whose work it is, and the documents with their pictures in the object store. Raises NotFound, AccessDenied."""
    archive_id = _archive_id(call)
    with call.client.access.admitted(call.principal):  # how many are waiting at the same time is limited
        requests = call.client.requests
        stored = requests.stored_documents([said.image_id for _, said in pairs if said.image_id is not None])
        sent = [said.picture for _, said in pairs if said.picture is not None]
        kept = iter(requests.store_pictures(sent, call.client.access.count_bytes(call.principal)))
        return archive_id, [_document(said, stored, kept) for _, said in pairs]


def _archive_id(call: Call[NoQuery, Any]) -> int | None:
    name = archive_of_model(call.body.model)
    if name is not None:
        return call.client.access.visible_archive(call.principal, name)
    if call.principal.archives is None:
        return None
    if not call.principal.archives:
        raise AccessDenied("the key is bound to archives that are gone")
    return min(call.principal.archives)


def _document(said: Parsed, stored: Mapping[int, Document], kept: Iterator[Document]) -> Document:
    """`kept` are the pictures that were sent, in order."""
    if said.image_id is not None:
        return stored[said.image_id]
    return Document(said.text, None if said.picture is None else next(kept).sha256)


def _echo(parsed: Parsed) -> TextDocument | None:
    return None if parsed.text is None or parsed.picture is not None else TextDocument(text=parsed.text)


def _usage(scores: Scores) -> Usage:
    return Usage(prompt_tokens=scores.tokens, total_tokens=scores.tokens)
