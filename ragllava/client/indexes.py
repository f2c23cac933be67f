"""Indexes: filled, switched, dropped."""

from __future__ import annotations

from ragllava.client.base import BaseClient
from ragllava.stages.reindex.stage import ReindexRequest, submit_reindex, submit_switch
from ragllava.stores.archives import archive, indexes
from ragllava.stores.archives.indexes import IndexDetails


class IndexClient(BaseClient):
    """What concerns the indexes of archives."""

    def reindex(self, request: ReindexRequest) -> int:
        """Queue a reindexing; returns its job. Raises UsageError for what cannot be done."""
        job_id = submit_reindex(self.engine, self.settings, request)
        self._dispatch()
        return job_id

    def indexes(self, archive_name: str | None = None) -> list[IndexDetails]:
        """The indexes of an archive, or of all, by archive and age."""
        if archive_name is None:
            return self._do(indexes.all_indexes)
        return self._do(lambda c: indexes.all_indexes(c, archive.get_archive(c, archive_name).archive_id))

    def index(self, index_id: int) -> IndexDetails:
        """One index. Raises UsageError for an unknown id."""
        return self._do(indexes.find_index, index_id)

    def switch_index(self, index_id: int) -> int:
        """Queue a job that fills this index and then answers from it; returns the job."""
        job_id = submit_switch(self.engine, self.settings, index_id)
        self._dispatch()
        return job_id

    def drop_index(self, index_id: int) -> None:
        """Forget an index and its vectors. Raises UsageError for the active one, and for one that a job fills."""
        self._do(indexes.drop_index, index_id)
