"""The gate of a reindexing: what an index must show before questions are answered from it (docs/reliability.md D12).

1. Every image of the archive has its vector, except those whose picture cannot be read, which are counted and few.
2. A large index has its graph, and searches through it find what an exact search finds: recall@20 ≥ 0.98.
3. Old questions are answered from both indexes. The reranker judges: in few of them may the best picture of the new
   index be less relevant than that of the old one. The answers that differ are listed.

The first finds a half-built index, the second a bad graph, the third a bad retriever: a search can be exact among
vectors that mean nothing. An archive with fewer images than are reranked shows no difference to the third, and is
answered the same by any retriever.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection

from ragllava.errors import ArchiveChanged, JobRefused
from ragllava.jobs.runner import ShardContext
from ragllava.json_records import to_json
from ragllava.records import AnswerOptions, Candidate, Question, ReindexStatus
from ragllava.stages.answer.stage import answer_questions, each
from ragllava.stages.answer.tools import AnswerTools, prepare
from ragllava.stages.reindex.images import Target, embed_items
from ragllava.stages.resources import Resources
from ragllava.stores.archives import indexes, reindex_items, vectors
from ragllava.stores.archives.reindex_items import ItemOutcome, ReindexItem
from ragllava.stores.archives.vectors import EXACT_SEARCH_ROWS
from ragllava.stores.jobs import answered

log = logging.getLogger(__name__)

NEEDED_RECALL = 0.98
RECALL_AT = 20
RECALL_QUESTIONS = 200
LARGEST_UNREADABLE_SHARE = 0.05
# Of the relevance of the best picture found; smaller differences are noise.
WORSE_BY = 0.1
LARGEST_WORSE_SHARE = 0.1
_ROUNDS = 10
_LISTED = 20  # unreadable pictures that the report names


@dataclass(frozen=True, slots=True)
class Found:
    """What one index gave for a question: the answer, and the images that it rests on."""

    answer: str | None
    relevance: float  # of the best candidate; 0 without any
    evidence: tuple[str, ...]  # names of images, in rank order


@dataclass(frozen=True, slots=True)
class Compared:
    """An old question, answered from the old index and from the new one."""

    question: str
    old: Found
    new: Found

    @property
    def differs(self) -> bool:
        """Another answer, or other evidence."""
        return self.old.answer != self.new.answer or self.old.evidence != self.new.evidence

    @property
    def change(self) -> int:
        """-1: the new index found something worse, 1: something better, 0: about the same."""
        change = self.new.relevance - self.old.relevance
        return 0 if abs(change) <= WORSE_BY else (-1 if change < 0 else 1)


def pass_gate(context: ShardContext[Resources], target: Target) -> None:
    """Fill what is missing, measure, and switch, keep or refuse; the report stands beside the index."""
    unreadable = context.read(reindex_items.given_up, context.lease.job_id)
    _catch_up(context, target, unreadable)
    target = _build_graph(context, target)
    report = _measure_recall(context, target)
    if target.spec["compare"] and target.index.state != "active":
        report |= _compare(context, target)
    for _ in range(_ROUNDS):
        if context.commit(partial(_conclude, context=context, target=target, report=report, unreadable=unreadable)):
            return
        _catch_up(context, target, unreadable)
    raise ArchiveChanged("new pictures arrive faster than this worker embeds them; it is tried again")


def _catch_up(context: ShardContext[Resources], target: Target, unreadable: dict[int, str]) -> None:
    missing = context.read(vectors.unembedded_images, target.index.index_id)
    items = [ReindexItem(None, image) for image in missing if image.image_id not in unreadable]
    unreadable.update(embed_items(context, target, items))


def _build_graph(context: ShardContext[Resources], target: Target) -> Target:
    """The target with its graph, if it is so large that it has one: from here on it is searched as questions will."""
    index_id = target.index.index_id
    has_graph = vectors.build_hnsw(context.engine, index_id)
    if not has_graph and context.read(vectors.count_embeddings, index_id) > EXACT_SEARCH_ROWS:
        raise ArchiveChanged(f"the graph of index {index_id} is being built by another process")
    return replace(target, index=context.read(vectors.get_index, index_id))


def _measure_recall(context: ShardContext[Resources], target: Target) -> dict[str, Any]:
    """By questions that were asked of the archive."""
    asked = context.read(answered.newest_questions, context.lease.archive_id, RECALL_QUESTIONS)
    queries = target.retriever.embed_texts([question.text for question in asked])
    index = target.index
    # Without a graph every search is exact: there is nothing to measure.
    value = context.read(vectors.measure_recall, index, queries, RECALL_AT) if index.has_hnsw else 1.0
    search = "graph" if index.has_hnsw else "exact"
    return {"recall": {"value": value, "at": RECALL_AT, "questions": len(asked), "search": search}}


def _compare(context: ShardContext[Resources], target: Target) -> dict[str, Any]:
    """Old questions on both indexes; where the old one's retriever is gone, against the answers of then."""
    compared = _answer_on_both(context, target)
    changes = [one.change for one in compared]
    return {
        "answers": {
            "questions": len(compared),
            "worse": changes.count(-1),
            "better": changes.count(1),
            "differ": sum(one.differs for one in compared),
            "differences": to_json([one for one in compared if one.differs]),
        }
    }


def _answer_on_both(context: ShardContext[Resources], target: Target) -> list[Compared]:
    lease, settings = context.lease, context.settings
    sample = context.read(answered.newest_questions, lease.archive_id, settings.gate_questions, answered=True)
    options = to_json(AnswerOptions(top_k=settings.top_k, top_n=settings.top_n))
    tools = partial(prepare, context.engine, settings, context.resources, lease.archive_id, options)
    new_tools = tools(target.index)
    try:
        old_tools = tools()
    except JobRefused as error:
        log.info(str(error), extra={"action": "old_index_not_answered", "job": lease.job_id})
        old_tools = None
    compared: list[Compared] = []
    for start in range(0, len(sample), settings.questions_per_step):
        context.check()
        batch = sample[start : start + settings.questions_per_step]
        questions = [Question(number, number + 1, one.custom_id, one.text) for number, one in enumerate(batch)]
        new = _ask(questions, new_tools)
        old = _ask(questions, old_tools) if old_tools else [_as_found(one.answer, one.candidates) for one in batch]
        compared += [
            Compared(question.text, before, after) for question, before, after in zip(questions, old, new, strict=True)
        ]
    return compared


def _ask(questions: Sequence[Question], tools: AnswerTools) -> list[Found]:
    answers = each(questions, lambda some: answer_questions(some, tools))
    return [_as_found(answer.text, answer.candidates) for answer in answers]


def _as_found(answer: str | None, candidates: Sequence[Candidate]) -> Found:
    kept = sorted((c for c in candidates if c.evidence_no is not None), key=lambda c: c.evidence_no or 0)
    best = max((candidate.relevance for candidate in candidates), default=0.0)
    return Found(answer, best, tuple(candidate.image.source for candidate in kept))


def _conclude(
    connection: Connection,
    context: ShardContext[Resources],
    target: Target,
    report: dict[str, Any],
    unreadable: dict[int, str],
) -> bool:
    """Count while nobody can add images and, in the same transaction, switch, keep or refuse; False: some miss."""
    lease, index_id = context.lease, target.index.index_id
    indexes.lock_archive(connection, lease.archive_id, shared=False)
    missing = vectors.unembedded_images(connection, index_id)
    if any(image.image_id not in unreadable for image in missing):
        return False
    held = vectors.count_embeddings(connection, index_id)
    named = [{"image": image.source, "reason": unreadable[image.image_id]} for image in missing[:_LISTED]]
    active = vectors.active_index(connection, lease.archive_id)
    report = report | {
        "images": reindex_items.count_images(connection, lease.archive_id),
        "vectors": held,
        "unreadable": len(missing),
        "unreadable_images": named,
        "beside": active.index_id if active and active.index_id != index_id else None,
        "job": lease.job_id,
    }
    refusal = why_refused(report)
    report |= {"passed": refusal is None, "reason": refusal or _in_words(report)}
    indexes.set_gate(connection, index_id, report)
    status = _settle(connection, target, is_active=report["beside"] is None, refused=refusal is not None)
    outcome = ItemOutcome(target.spec["gate"], status, report["reason"])
    reindex_items.finish_items(connection, lease.job_id, [outcome])
    log.info(report["reason"], extra={"action": "gate_" + status.value, "job": lease.job_id, "index": index_id})
    return True


def _settle(connection: Connection, target: Target, *, is_active: bool, refused: bool) -> ReindexStatus:
    index_id = target.index.index_id
    if refused:
        indexes.retire(connection, index_id)
        return ReindexStatus.REFUSED
    if is_active or not target.spec["switch"]:
        return ReindexStatus.KEPT
    indexes.activate(connection, index_id)
    return ReindexStatus.SWITCHED


def why_refused(report: dict[str, Any]) -> str | None:
    """One sentence for the first thing that the index lacks; None when it may be used."""
    unreadable, images = report["unreadable"], report["images"]
    if unreadable > LARGEST_UNREADABLE_SHARE * images:
        first = report["unreadable_images"][0]
        return (
            f"{unreadable} of {images} pictures cannot be read, the first one {first['image']}: {first['reason']}; "
            f"at most {LARGEST_UNREADABLE_SHARE:.0%} may be missing"
        )
    if report["vectors"] != images - unreadable:
        return f"it holds {report['vectors']} vectors for {images - unreadable} pictures; drop it and begin anew"
    recall = report["recall"]
    if recall["value"] < NEEDED_RECALL:
        return f"its graph finds {recall['value']:.3f} of the nearest {recall['at']} images, {NEEDED_RECALL} are needed"
    compared = report.get("answers")
    if compared and compared["worse"] - compared["better"] > LARGEST_WORSE_SHARE * compared["questions"]:
        return (
            f"of {compared['questions']} old questions it finds less relevant pictures for {compared['worse']}, and "
            f"more relevant ones for {compared['better']}"
        )
    return None


def _in_words(report: dict[str, Any]) -> str:
    said = f"{report['vectors']} of {report['images']} images have their vector"
    if report["recall"]["search"] == "graph":
        said += f", recall@{RECALL_AT} {report['recall']['value']:.3f} on {report['recall']['questions']} questions"
    compared = report.get("answers")
    if compared is not None and not compared["questions"]:
        said += "; no question was answered before, so answers were not compared"
    elif compared is not None:
        said += (
            f"; of {compared['questions']} old questions {compared['differ']} end otherwise, "
            f"{compared['better']} with better and {compared['worse']} with worse pictures"
        )
    return said
