"""What answering needs: settings and options, the index, the current champions, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine

from ragllava.json_records import from_json
from ragllava.prompts import ANSWER_BARE_VERSION, ANSWER_VERSION, RERANK_VERSION
from ragllava.records import AnswerOptions, ModelStamp, Role
from ragllava.settings import Settings
from ragllava.stages.answer.cautions import open_ingests
from ragllava.stages.answer.splitting import Cost
from ragllava.stages.answer.waves import DEPTH_VERSIONS
from ragllava.stages.champions import apply_champions
from ragllava.stages.resources import Resources
from ragllava.stores.archives import vectors
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.database import in_transaction, read_at_once
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import ModelVersion

# Of the rules in candidates.py: it grows when the same archive gives a question other candidates.
RETRIEVAL_VERSION = 1
CUT = "-cut-"  # in the stamp, between the version of the depth and the number of candidates that a limit left


@dataclass(frozen=True)
class AnswerTools:
    """Everything that one call of `answer_questions` needs."""

    engine: Engine
    settings: Settings
    resources: Resources
    index: IndexView | None  # None: the archive has no embedded picture yet
    options: AnswerOptions
    threshold: float
    champions: Mapping[Role, ModelVersion]
    ingests: tuple[int, ...] = ()  # the jobs that still add pictures to the archive
    by_caption: bool = False  # the questions are captions whose image is sought; only evaluations ask these
    question_only: bool = False  # no instruction follows the question; only evaluations ask so


def prepare(
    engine: Engine,
    settings: Settings,
    resources: Resources,
    archive_id: int,
    options: dict[str, object],
    index: IndexView | None = None,
    *,
    only_retrieve: bool = False,
) -> AnswerTools:
    """Look up what all questions of a shard share, and, unless `only_retrieve`, apply the current champions.

    So a new champion, with its own η, and a new index are taken up between two shards, and no question is answered by
    two versions. `index` replaces the archive's active index. Raises JobRefused when the retriever of the index, or a
    champion, cannot be used here.
    """
    chosen = from_json(AnswerOptions, options)
    profile = resources.models.profile
    champions = in_transaction(engine, registry.champions, profile.name)
    index = index or in_transaction(engine, vectors.active_index, archive_id)
    if index is not None:
        resources.retriever_of(index)
    threshold = chosen.threshold
    if threshold is None:
        reranker = champions.get(Role.RERANKER)
        fitted = reranker.threshold if reranker else None
        threshold = profile.threshold if fitted is None else fitted
    if not only_retrieve:
        apply_champions(resources, champions)
    ingests = tuple(read_at_once(engine, open_ingests, archive_id))
    return AnswerTools(engine, settings, resources, index, chosen, threshold, champions, ingests)


def cost_of(tools: AnswerTools) -> Cost:
    """What answering costs with these models: an answer reads its evidence a second time."""
    sharing = tools.resources.models.reranker.sharing
    prefix = sharing.prefix_tokens / sharing.ending_tokens if sharing else 0.0
    return Cost(image=prefix, pair=1.0, question=(prefix + 1.0) * tools.options.top_n)


def stamp_now(tools: AnswerTools) -> ModelStamp:
    """The stamp of answers given with these tools and the models applied now."""
    models = tools.resources.models
    return stamp_of(tools, models.reranker.version, models.generator.version)


def stamp_of(tools: AnswerTools, reranker: str, generator: str) -> ModelStamp:
    """The stamp of answers given with these tools by these versions."""
    answer_version = ANSWER_VERSION if tools.options.captions_in_answer else ANSWER_BARE_VERSION
    return ModelStamp(
        index=f"{tools.index.index_id}:{tools.index.retriever}" if tools.index else "none",
        reranker=reranker,
        generator=generator,
        prompt=f"{RERANK_VERSION}+{answer_version}",
        threshold=tools.threshold,
        retrieval=f"{tools.options.retrieval.value}-{RETRIEVAL_VERSION}",
        depth=f"{tools.options.depth.value}-{DEPTH_VERSIONS[tools.options.depth]}",
    )
