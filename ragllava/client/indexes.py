"""Indexes of archives."""

from __future__ import annotations

from ragllava.client.connections import Namespace
from ragllava.stages.reindex.stage import submit_switch
from ragllava.stores.archives import indexes
from ragllava.stores.archives.indexes import IndexDetails


class Indexes(Namespace):
    """Indexes of archives: building, active or retired."""

    def get(self, index_id: int) -> IndexDetails:
        """One index. Raises UsageError for an unknown id."""
        return self._do(indexes.find_index, index_id)

    def switch(self, index_id: int) -> int:
        """Queue a job that adds what this index lacks and then answers from it; returns the job. Raises UsageError."""
        job_id = submit_switch(self._connections.engine, self._connections.settings, index_id)
        self._dispatch()
        return job_id

    def drop(self, index_id: int) -> None:
        """Delete an index and its vectors. Raises UsageError for the active one, and for one that a job fills."""
        self._do(indexes.drop_index, index_id)

    def list(self, archive: str | None = None) -> list[IndexDetails]:
        """The indexes of an archive, or of all archives, by archive and age. Raises UsageError."""
        if archive is None:
            return self._do(indexes.all_indexes)
        return self._of_archive(archive, indexes.all_indexes)
