"""An archive of the first postcards, and the calls that tests of its indexes make most often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import text

from ragllava.jobs import views
from ragllava.jobs.views import JobView
from ragllava.models.profiles import RetrieverSource
from ragllava.records import GapReason, Selection
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.uris import file_uri
from ragllava.stages.reindex.gaps import find_gaps
from ragllava.stages.reindex.stage import ReindexRequest, submit_reindex, submit_switch
from ragllava.stages.results.results import ResultRow
from ragllava.stores.archives import indexes
from ragllava.stores.archives.indexes import IndexDetails
from ragllava.stores.database import in_transaction
from tests.support.workshop import ARCHIVE, Workshop

if TYPE_CHECKING:
    from tests.integration.conftest import Postcards

CARDS = 20


def cards(postcards: Postcards, first: int, last: int) -> list[SourceFile]:
    return [
        SourceFile(card.file_name, file_uri(postcards.written.pictures / card.file_name), card.caption)
        for card in postcards.archive.postcards[first:last]
    ]


def queue(
    workshop: Workshop, selection: Selection, source: RetrieverSource | None = None, *, switch: bool = True
) -> int:
    request = ReindexRequest(ARCHIVE, selection, source, switch=switch)
    return in_transaction(workshop.engine, submit_reindex, workshop.settings, request)


def reindexed(
    workshop: Workshop, selection: Selection, source: RetrieverSource | None = None, *, switch: bool = True
) -> JobView:
    job_id = queue(workshop, selection, source, switch=switch)
    workshop.run()
    return workshop.job(job_id)


def switched(workshop: Workshop, index_id: int) -> JobView:
    job_id = in_transaction(workshop.engine, submit_switch, workshop.settings, index_id)
    workshop.run()
    return workshop.job(job_id)


def listed(workshop: Workshop) -> list[IndexDetails]:
    with workshop.engine.begin() as connection:
        return indexes.all_indexes(connection, workshop.archive_id())


def states(workshop: Workshop) -> list[tuple[str, int]]:
    return [(details.index.state, details.images) for details in listed(workshop)]


def ids(workshop: Workshop) -> list[int]:
    return [details.index.index_id for details in listed(workshop)]


def stored(workshop: Workshop, index_id: int) -> dict[int, Any]:
    statement = text(f"SELECT image_id, vector::text AS vector FROM embeddings_{index_id}")
    with workshop.engine.begin() as connection:
        return {row.image_id: np.array(row.vector[1:-1].split(","), float) for row in connection.execute(statement)}


def indexes_named(rows: Sequence[ResultRow]) -> set[int]:
    return {int(row.models["index"].partition(":")[0]) for row in rows if row.models}


def gaps(workshop: Workshop) -> dict[str, GapReason]:
    with workshop.engine.begin() as connection:
        return {gap.source: gap.reason for gap in find_gaps(connection, workshop.archive_id())}


class Watched:
    """A retriever that does something once, before the first pictures or questions it is given."""

    def __init__(self, retriever: Any, before: Callable[[], None]) -> None:
        self._retriever = retriever
        self._before: Callable[[], None] | None = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)

    def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> Any:
        self._once()
        return self._retriever.embed_pixels(pixels, batch_size=batch_size)

    def embed_texts(self, texts: Sequence[str]) -> Any:
        self._once()
        return self._retriever.embed_texts(texts)

    def _once(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before()


def troubles(workshop: Workshop, job_id: int) -> list[views.ShardView]:
    with workshop.engine.begin() as connection:
        return views.troubled_shards(connection, job_id)
