"""What answering works with: settings and options, the index, the champions of this moment, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from ragllava.json_records import from_json
from ragllava.prompts import ANSWER_BARE_VERSION, ANSWER_VERSION, RERANK_VERSION
from ragllava.records import AnswerOptions, ModelStamp, Role
from ragllava.settings import Settings
from ragllava.stages.answer.planning import Cost
from ragllava.stages.champions import apply_champions
from ragllava.stages.resources import Resources
from ragllava.stores.archives import vectors
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import ModelVersion


@dataclass(frozen=True)
class AnswerTools:
    """Everything one call of `answer_questions` works with."""

    engine: Engine
    settings: Settings
    resources: Resources
    index: IndexView | None  # None: the archive holds no embedded picture yet
    options: AnswerOptions
    threshold: float
    by_caption: bool = False  # questions are captions to find the image of; jobs ask none of these


def prepare(
    engine: Engine,
    settings: Settings,
    resources: Resources,
    archive_id: int,
    options: dict[str, object],
    index: IndexView | None = None,
) -> AnswerTools:
    """Look up what all questions of a shard share, and let the models be the champions of this moment.

    So a new champion is taken up between two shards, with its own η, and no question is answered by two versions.
    The same with a new index; `index` names another one than the archive's active one. Raises JobRefused when the
    retriever of the index, or a champion, cannot be used here.
    """
    tools, champions = look_up(engine, settings, resources, archive_id, options, index)
    apply_champions(resources, champions)
    return tools


def look_up(
    engine: Engine,
    settings: Settings,
    resources: Resources,
    archive_id: int,
    options: dict[str, object],
    index: IndexView | None = None,
) -> tuple[AnswerTools, dict[Role, ModelVersion]]:
    """As `prepare`, but nobody wears the champions, which are returned: enough to retrieve with the tools."""
    chosen = from_json(AnswerOptions, options)
    profile = resources.models.profile
    active, champions = in_transaction(
        engine, lambda c: (vectors.active_index(c, archive_id), registry.champions(c, profile.name))
    )
    index = index or active
    if index is not None:
        resources.retriever_of(index)
    threshold = chosen.threshold
    if threshold is None:
        reranker = champions.get(Role.RERANKER)
        fitted = reranker.threshold if reranker else None
        threshold = profile.threshold if fitted is None else fitted
    return AnswerTools(engine, settings, resources, index, chosen, threshold), champions


def cost_of(tools: AnswerTools) -> Cost:
    """What answering costs with these models: an answer reads its evidence once more."""
    sharing = tools.resources.models.reranker.sharing
    prefix = sharing.prefix_tokens / sharing.ending_tokens if sharing else 0.0
    return Cost(image=prefix, pair=1.0, question=(prefix + 1.0) * tools.options.top_n)


def stamp_now(tools: AnswerTools) -> ModelStamp:
    """The makers of answers given with these tools now."""
    models = tools.resources.models
    return stamp_of(tools, models.reranker.version, models.generator.version)


def stamp_of(tools: AnswerTools, reranker: str, generator: str) -> ModelStamp:
    """The makers of answers given with these tools by these versions."""
    answer_version = ANSWER_VERSION if tools.options.captions_in_answer else ANSWER_BARE_VERSION
    return ModelStamp(
        index=f"{tools.index.index_id}:{tools.index.retriever}" if tools.index else "none",
        reranker=reranker,
        generator=generator,
        prompt=f"{RERANK_VERSION}+{answer_version}",
        threshold=tools.threshold,
    )
