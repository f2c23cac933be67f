"""The gate of a reindexing: the checks before questions are answered from an index (docs/reliability.md D12).

1. Every image of the archive has its vector, except those whose picture cannot be read; these must be few.
2. A large index has its graph, and searches through it find what an exact search finds: recall@20 ≥ 0.98.
3. Old questions are answered from the nearest pictures of both indexes, without captions. Only for few of them may the
   best picture of the new index be less relevant, by the reranker, than that of the old index. The answers that differ
   are listed.

The first check detects an incomplete index, the second a bad graph, the third a bad retriever, whose vectors are
searched exactly but mean nothing. In an archive with fewer images than are reranked the third check finds no
difference: every retriever gives the same answers there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from ragllava.errors import ArchiveChanged, JobRefused
from ragllava.jobs.runner import ShardContext
from ragllava.json_records import to_json
from ragllava.records import AnswerOptions, Candidate, Depth, Origin, Question, ReindexStatus, Retrieval, evidence_of
from ragllava.stages.answer.pipeline import answer_questions, isolate_failures
from ragllava.stages.answer.tools import AnswerTools, prepare
from ragllava.stages.reindex.images import ReindexTarget, embed_items
from ragllava.stages.resources import Resources
from ragllava.stores.archives import graphs, indexes, reindex_items, vector_search, vectors
from ragllava.stores.archives.reindex_items import ItemOutcome, ReindexItem
from ragllava.stores.archives.vectors import EXACT_SEARCH_ROWS, IndexView
from ragllava.stores.jobs import answered

if TYPE_CHECKING:
    from ragllava.models.retriever import Retriever

log = logging.getLogger(__name__)

NEEDED_RECALL = 0.98
RECALL_AT = 20
RECALL_QUESTIONS = 200
LARGEST_UNREADABLE_SHARE = 0.05
# Of the relevance of the best picture; smaller differences are noise.
WORSE_BY = 0.1
LARGEST_WORSE_SHARE = 0.1
_ROUNDS = 10
_LISTED = 20  # unreadable pictures that the report names


@dataclass(frozen=True, slots=True)
class IndexAnswer:
    """The answer to a question from one index, and its evidence."""

    answer: str | None
    relevance: float  # of the best candidate that the index found; 0 without any
    evidence: tuple[str, ...]  # names of images, in rank order


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """An old question, answered from the old index and from the new one."""

    question: str
    old: IndexAnswer
    new: IndexAnswer

    @property
    def differs(self) -> bool:
        """Another answer, or other evidence."""
        return self.old.answer != self.new.answer or self.old.evidence != self.new.evidence

    @property
    def change(self) -> int:
        """-1: the best picture of the new index is less relevant, 1: more relevant, 0: about the same."""
        change = self.new.relevance - self.old.relevance
        return 0 if abs(change) <= WORSE_BY else (-1 if change < 0 else 1)


def pass_gate(context: ShardContext[Resources], target: ReindexTarget) -> None:
    """Embed what is missing, measure, and switch, keep or refuse; the report is stored with the index."""
    unreadable = context.read(reindex_items.given_up, context.lease.job_id)
    _catch_up(context, target, unreadable)
    target = _build_graph(context, target)
    index = target.index
    recall, questions = measure_recall(context, index, target.retriever)
    search = "graph" if index.has_hnsw else "exact"
    report: dict[str, Any] = {"recall": {"value": recall, "at": RECALL_AT, "questions": questions, "search": search}}
    if target.spec["compare"] and index.state != "active":
        report |= _compare(context, target)
    for _ in range(_ROUNDS):
        if context.commit(_conclude, context, target, report, unreadable):
            return
        _catch_up(context, target, unreadable)
    raise ArchiveChanged("new pictures arrive faster than this worker embeds them; the gate is tried again")


def _catch_up(context: ShardContext[Resources], target: ReindexTarget, unreadable: dict[int, str]) -> None:
    missing = context.read(vectors.unembedded_images, target.index.index_id)
    items = [ReindexItem(None, image) for image in missing if image.image_id not in unreadable]
    unreadable.update(embed_items(context, target, items))


def _build_graph(context: ShardContext[Resources], target: ReindexTarget) -> ReindexTarget:
    """Build the graph of a large index, so that it is searched as for questions; returns the target as it is then."""
    index_id = target.index.index_id
    has_graph = graphs.build_hnsw(context.engine, index_id)
    if not has_graph and context.read(vectors.count_embeddings, index_id) > EXACT_SEARCH_ROWS:
        raise ArchiveChanged(f"the graph of index {index_id} is being built by another process")
    return replace(target, index=context.read(vectors.get_index, index_id))


def measure_recall(context: ShardContext[Resources], index: IndexView, retriever: Retriever) -> tuple[float, int]:
    """recall@20 of an index's graph against an exact search, with the newest questions of its archive, and how many
    these are. Without a graph every search is exact: 1."""
    asked = context.read(answered.newest_questions, index.archive_id, RECALL_QUESTIONS)
    queries = retriever.embed_texts([question.text for question in asked])
    value = context.read(vector_search.measure_recall, index, queries, RECALL_AT) if index.has_hnsw else 1.0
    return value, len(asked)


def _compare(context: ShardContext[Resources], target: ReindexTarget) -> dict[str, Any]:
    """Old questions on both indexes; where the old index's retriever cannot be used, against the stored answers."""
    comparisons = _answer_on_both(context, target)
    changes = [comparison.change for comparison in comparisons]
    differences = to_json([comparison for comparison in comparisons if comparison.differs])
    return {
        "answers": {
            "questions": len(comparisons),
            "worse": changes.count(-1),
            "better": changes.count(1),
            "differ": len(differences),
            "differences": differences,
        }
    }


def _answer_on_both(context: ShardContext[Resources], target: ReindexTarget) -> list[AnswerComparison]:
    lease, settings = context.lease, context.settings
    sample = context.read(answered.newest_questions, lease.archive_id, settings.gate_questions, answered=True)
    # Captions would find the right picture for a retriever whose vectors mean nothing.
    by_picture = AnswerOptions(settings.top_k, settings.top_n, retrieval=Retrieval.PICTURE, depth=Depth.FIXED)
    options = to_json(by_picture)
    tools = partial(prepare, context.engine, settings, context.resources, lease.archive_id, options)
    new_tools = tools(target.index)
    try:
        old_tools = tools()
    except JobRefused as error:
        log.info(str(error), extra={"action": "old_index_not_answered", "job": lease.job_id})
        old_tools = None
    comparisons: list[AnswerComparison] = []
    for start in range(0, len(sample), settings.questions_per_step):
        context.check()
        batch = sample[start : start + settings.questions_per_step]
        questions = [Question(no, no + 1, stored.custom_id, stored.text) for no, stored in enumerate(batch)]
        new = _ask(questions, new_tools)
        old = _ask(questions, old_tools) if old_tools else [_summary(row.answer, row.candidates) for row in batch]
        rows = zip(questions, old, new, strict=True)
        comparisons += [AnswerComparison(question.text, before, after) for question, before, after in rows]
    return comparisons


def _ask(questions: Sequence[Question], tools: AnswerTools) -> list[IndexAnswer]:
    answers = isolate_failures(questions, partial(answer_questions, tools=tools))
    return [_summary(answer.text, answer.candidates) for answer in answers]


def _summary(answer: str | None, candidates: Sequence[Candidate]) -> IndexAnswer:
    by_picture = (candidate.relevance for candidate in candidates if candidate.origin is not Origin.CAPTION)
    best = max((relevance for relevance in by_picture if relevance is not None), default=0.0)
    return IndexAnswer(answer, best, tuple(candidate.image.source for candidate in evidence_of(candidates)))


def _conclude(
    connection: Connection,
    context: ShardContext[Resources],
    target: ReindexTarget,
    report: dict[str, Any],
    unreadable: dict[int, str],
) -> bool:
    """Count while no images can be added and, in the same transaction, switch, keep or refuse; False: some images have
    no vector yet."""
    lease, index_id = context.lease, target.index.index_id
    indexes.lock_archive(connection, lease.archive_id, shared=False)
    missing = vectors.unembedded_images(connection, index_id)
    if any(image.image_id not in unreadable for image in missing):
        return False
    examples = [{"image": image.source, "reason": unreadable[image.image_id]} for image in missing[:_LISTED]]
    active = vectors.active_index(connection, lease.archive_id)
    report = report | {
        "images": reindex_items.count_images(connection, lease.archive_id),
        "vectors": vectors.count_embeddings(connection, index_id),
        "unreadable": len(missing),
        "unreadable_images": examples,
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


def _settle(connection: Connection, target: ReindexTarget, *, is_active: bool, refused: bool) -> ReindexStatus:
    index_id = target.index.index_id
    if refused:
        indexes.retire(connection, index_id)
        return ReindexStatus.REFUSED
    if is_active or not target.spec["switch"]:
        return ReindexStatus.KEPT
    indexes.activate(connection, index_id)
    return ReindexStatus.SWITCHED


def why_refused(report: dict[str, Any]) -> str | None:
    """A sentence about the first check that the index fails; None when it may be used."""
    unreadable, images = report["unreadable"], report["images"]
    if unreadable > LARGEST_UNREADABLE_SHARE * images:
        first = report["unreadable_images"][0]
        return (
            f"{unreadable} of {images} pictures cannot be read, the first one {first['image']}: {first['reason']}; "
            f"at most {LARGEST_UNREADABLE_SHARE:.0%} may be missing"
        )
    if report["vectors"] != images - unreadable:
        return f"it holds {report['vectors']} vectors for {images - unreadable} pictures; drop it and start again"
    recall = report["recall"]
    if recall["value"] < NEEDED_RECALL:
        return (
            f"its graph finds {recall['value']:.3f} of the nearest {recall['at']} images; {NEEDED_RECALL} are required"
        )
    compared = report.get("answers")
    if compared and compared["worse"] - compared["better"] > LARGEST_WORSE_SHARE * compared["questions"]:
        return (
            f"of {compared['questions']} old questions it finds less relevant pictures for {compared['worse']} and "
            f"more relevant pictures for {compared['better']}"
        )
    return None


def _in_words(report: dict[str, Any]) -> str:
    parts = [f"{report['vectors']} of {report['images']} images have their vector"]
    if report["recall"]["search"] == "graph":
        parts[0] += f", recall@{RECALL_AT} {report['recall']['value']:.3f} on {report['recall']['questions']} questions"
    compared = report.get("answers")
    if compared is not None and not compared["questions"]:
        parts.append("the archive has no answered question, so answers were not compared")
    elif compared is not None:
        parts.append(
            f"of {compared['questions']} old questions {compared['differ']} have another answer or evidence, "
            f"{compared['better']} with better and {compared['worse']} with worse pictures"
        )
    return "; ".join(parts)
