"""Batches of the HTTP API: created, shown with the status that OpenAI's clients know, cancelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from ragllava.client.access.access import Access
from ragllava.client.access.files import Files
from ragllava.client.connections import Namespace
from ragllava.client.jobs import Jobs
from ragllava.errors import Conflict, UsageError
from ragllava.stages.batches import submit
from ragllava.stages.batches.bodies import ENDPOINTS
from ragllava.stages.batches.state import BatchStatus, is_job_ended, request_counts, status_of
from ragllava.stores.access import batches, usage
from ragllava.stores.access.batches import Batch, NewBatch
from ragllava.stores.access.keys import Principal
from ragllava.stores.access.uploads import Page, Upload

PURPOSE = "batch"
_FIRST_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a client asks for, as it says it."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: Mapping[str, str] | None = None
    output_expires_s: int | None = None
    idempotency_key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch with its status and the counts of its lines."""

    batch: Batch
    status: BatchStatus
    counts: dict[str, int]


class Batches(Namespace):
    """Batches. Each method raises NotFound for one that is not there, or that the caller may not see."""

    def create(self, principal: Principal, request: BatchRequest) -> BatchView:
        """Create a batch; a maintenance worker makes its job as soon as it has read the file.

        A request that is repeated (with the same key, or by a client that says so) gets the batch of the first one.
        Raises UsageError for an endpoint, a window or metadata that do not exist, NotFound for an unknown file or
        archive, KeyReused, QuotaExceeded.
        """
        window_s = submit.window_seconds(request.completion_window)
        metadata = dict(request.metadata or {})
        if request.endpoint not in ENDPOINTS:
            raise UsageError(f"endpoint: batches are for {' and '.join(ENDPOINTS)}, not for {request.endpoint[:80]!r}")
        options = submit.options_of(metadata)
        submit.flag("skip_invalid", metadata.get("skip_invalid", "false"))
        files, access = Files(self._connections), Access(self._connections)
        upload = files.get(request.input_file_id)
        archive_id = access.visible_archive(principal, self._archive_name(files, upload, metadata))
        said = (request.input_file_id, request.endpoint, request.completion_window, metadata, request.output_expires_s)
        new = NewBatch(
            owner=principal.owner,
            archive_id=archive_id,
            input_file_id=request.input_file_id,
            endpoint=request.endpoint,
            completion_window=request.completion_window,
            window_s=window_s,
            metadata=metadata or None,
            options=submit.options_json(options),
            output_expires_s=request.output_expires_s,
            questions=upload.lines,
            content_digest=submit.content_digest(*said),
            idempotency_key=request.idempotency_key,
            is_retry=request.is_retry,
        )
        batch_id = self._do(_create, access, principal, new)
        self._tick()
        return self.get(batch_id)

    def _archive_name(self, files: Files, upload: Upload, metadata: Mapping[str, str]) -> str:
        if upload.purpose != PURPOSE:
            raise UsageError(f"input_file_id: {upload.file_id} has the purpose {upload.purpose}, not {PURPOSE}")
        name = metadata.get("archive") or submit.archive_of_first_line(files.first_line(upload, _FIRST_LINE_BYTES))
        if name is None:
            raise UsageError(
                "no archive is named: give metadata.archive, or the model ragllava/<archive> in the lines of the file"
            )
        return name

    def get(self, batch_id: str) -> BatchView:
        """One batch."""
        return self._do(_view, batch_id)

    def cancel(self, batch_id: str) -> BatchView:
        """Stop a batch; what is answered stays. Repeating it changes nothing. Raises Conflict for an ended batch."""
        view = self.get(batch_id)
        if view.batch.ended_at is not None and view.status is not BatchStatus.CANCELLED:
            raise Conflict(f"batch {batch_id} has ended as {view.status} and cannot be cancelled")
        if view.batch.ended_at is None:
            self._do(batches.set_cancelling, batch_id)
            if view.batch.job_id is not None and not is_job_ended(view.batch):
                self._stop(view.batch.job_id)
            self._tick()
        return self.get(batch_id)

    def _stop(self, job_id: int) -> None:
        try:
            Jobs(self._connections).cancel(job_id)
        except Conflict:  # it has ended meanwhile, or is being cancelled
            return

    def list(self, page: Page) -> tuple[list[BatchView], bool]:
        """A page of batches, the newest first, and whether more follow. Raises UsageError for an unknown `after`."""
        return self._do(_page, page)


def _create(connection: Connection, access: Access, principal: Principal, new: NewBatch) -> str:
    """A refused batch is rolled back together with what was counted for it."""
    batch_id, is_new = batches.create_batch(connection, new)
    if is_new:
        usage.require_room(connection)
        access.count_questions(principal)(connection, new.questions)
    return batch_id


def _view(connection: Connection, batch_id: str) -> BatchView:
    [view] = _as_views(connection, [batches.get_batch(connection, batch_id)])
    return view


def _page(connection: Connection, page: Page) -> tuple[list[BatchView], bool]:
    found, has_more = batches.list_batches(connection, page)
    return _as_views(connection, found), has_more


def _as_views(connection: Connection, found: Sequence[Batch]) -> list[BatchView]:
    counts = request_counts(connection, found)
    return [BatchView(batch, status_of(batch), count) for batch, count in zip(found, counts, strict=True)]
