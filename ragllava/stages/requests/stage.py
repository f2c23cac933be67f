"""The stage of requests: a search, relevances, or a timed sample, with the models that the worker has loaded
already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from ragllava.errors import ImageRejected, JobRefused, UsageError
from ragllava.jobs import views
from ragllava.jobs.runner import ShardContext
from ragllava.json_records import from_json, to_json
from ragllava.records import AnswerOptions, FoundImage
from ragllava.stages.answer.lookup import search_archive
from ragllava.stages.requests.scoring import ScoreRequest, score_pairs
from ragllava.stages.requests.timing import time_questions
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import requests
from ragllava.stores.jobs.requests import Operation

Context = ShardContext[Resources]


def request_stage(context: Context) -> None:
    """Do what a request asks for, unless it has an outcome. Its own faults end it; others are those of the shard."""
    job_id = context.lease.job_id
    request = context.read(requests.load_request, job_id)
    if request is None:
        return
    try:
        result = _OPERATIONS[request.operation](context, request.body)
    except (UsageError, ImageRejected) as error:
        context.commit(requests.fail_request, job_id, str(error))
    else:
        context.commit(requests.finish_request, job_id, result)


def _score(context: Context, body: Mapping[str, Any]) -> dict[str, Any]:
    return to_json(score_pairs(context, from_json(ScoreRequest, body)))  # type: ignore[no-any-return]


def _search(context: Context, body: Mapping[str, Any]) -> dict[str, Any]:
    name = context.read(_archive_name, context.lease.job_id)
    options = from_json(AnswerOptions, body["options"])
    asked = body["text"], options, body.get("picture")
    found = search_archive(context.engine, context.settings, context.resources, name, *asked)
    return {"found": list(map(_as_stored, found))}


def _time(context: Context, body: Mapping[str, Any]) -> dict[str, Any]:
    return to_json(time_questions(context, body))  # type: ignore[no-any-return]


def _as_stored(found: FoundImage) -> dict[str, Any]:
    """By the image's id alone: its caption may be removed while the result is stored."""
    names = ("picture_rank", "retrieval_score", "caption_rank", "caption_score")
    return {"image_id": found.image.image_id, **{name: getattr(found, name) for name in names}}


def _archive_name(connection: Connection, job_id: int) -> str:
    name = views.archive_of(connection, job_id)
    if name is None:
        raise JobRefused("the archive is being removed")
    return name


_OPERATIONS: Mapping[Operation, Callable[[Context, Mapping[str, Any]], dict[str, Any]]] = {
    Operation.SCORE: _score,
    Operation.SEARCH: _search,
    Operation.TIME: _time,
}
