"""Indexes of archives."""

from __future__ import annotations

from ragllava.client.connections import Namespace, forwarded
from ragllava.stages.reindex.stage import submit_switch
from ragllava.stores.archives import indexes
from ragllava.stores.archives.indexes import IndexDetails


class Indexes(Namespace):
    """Indexes of archives: building, active or retired."""

    get = forwarded(indexes.find_index)
    drop = forwarded(indexes.drop_index)

    def switch(self, index_id: int) -> int:
        """Queue a job that adds what this index lacks and then answers from it; returns the job. Raises UsageError."""
        return self._queue(submit_switch, index_id)

    def list(self, archive: str | None = None) -> list[IndexDetails]:
        """The indexes of an archive, or of all archives, by archive and age. Raises UsageError."""
        if archive is None:
            return self._do(indexes.all_indexes)
        return self._of_archive(archive, indexes.all_indexes)
