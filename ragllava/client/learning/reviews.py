"""Feedback on answers, and noisy cases for reviewers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ragllava.client.connections import Namespace
from ragllava.client.jobs import Jobs
from ragllava.errors import UsageError
from ragllava.feedback import NoisyReason, NoisyState
from ragllava.records import StoredImage
from ragllava.stages.feedback.files import feedback_of, read_feedback
from ragllava.stages.feedback.label_studio import LABELING_CONFIG, as_task, read_annotations
from ragllava.stages.feedback.labels import (
    QuestionView,
    StoredFeedback,
    dismiss_cases,
    store_feedback,
    view_question,
)
from ragllava.stages.results.output_files import output_file
from ragllava.stores.learning import noisy
from ragllava.stores.learning.noisy import NoisyView
from ragllava.stores.objects import content_key


@dataclass(frozen=True, slots=True)
class ImportedReviews:
    """The labels of a Label Studio export, and how many of its tasks have no annotation yet."""

    stored: StoredFeedback
    unannotated: int


class Reviews(Namespace):
    """Feedback, noisy cases and the exchange with Label Studio."""

    def feedback(
        self,
        labels: str | Path | bytes | Iterable[Mapping[str, Any]],
        *,
        job_id: int | None = None,
        source: str = "person",
        skip_invalid: bool = False,
    ) -> StoredFeedback:
        """Store labels of answers, from a file (JSONL, JSON, CSV, Excel), its content, or records with the same keys.

        `job_id` is the job of the lines that name none; `source` is `person` or `gold`. Raises InvalidInput when a
        line is invalid and `skip_invalid` is not set; then nothing was stored.
        """
        if isinstance(labels, str | Path | bytes):
            name = "standard input" if isinstance(labels, bytes) else str(labels)
            content = Path(labels) if isinstance(labels, str) else labels
            file = read_feedback(content, name=name, job_id=job_id)
        else:
            file = feedback_of(labels, job_id=job_id)
        return self._do(store_feedback, file, source=source, skip_invalid=skip_invalid)

    def get(self, job_id: int, custom_id: str) -> QuestionView:
        """One question with its candidates, its noisy case and its newest label. Raises UsageError when unknown."""
        Jobs(self._connections).require_answers(job_id)
        return self._do(view_question, job_id, custom_id)

    def picture_address(self, image: StoredImage, expires_s: int | None = None) -> str:
        """The `s3://` address of a picture, or a signed HTTP address that is valid for `expires_s` seconds."""
        objects, key = self._connections.objects, content_key(image.sha256)
        return f"s3://{objects.bucket}/{key}" if expires_s is None else objects.presigned_url(key, expires_s)

    def export_tasks(
        self,
        archive: str,
        *,
        state: NoisyState | None = NoisyState.OPEN,
        reason: NoisyReason | None = None,
        expires_s: int | None = None,
    ) -> list[dict[str, Any]]:
        """Noisy cases as tasks for Label Studio, which refer to the pictures by their `s3://` addresses.

        With `expires_s`, by signed addresses that are valid for so many seconds. Raises UsageError.
        """
        address = partial(self.picture_address, expires_s=expires_s)
        return [as_task(case, address) for case in self.list(archive, state=state, reason=reason)]

    def save_tasks(
        self, path: str | Path, tasks: Sequence[Mapping[str, Any]], config: str | Path | None = None
    ) -> None:
        """Write the result of `export_tasks` to `path`, and Label Studio's configuration for it to `config`.

        Neither file appears without the other. Raises UsageError for a file that cannot be written.
        """
        with ExitStack() as files:
            part = files.enter_context(output_file(Path(path)))
            part.write_text(json.dumps(tasks, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            if config is not None:
                files.enter_context(output_file(Path(config))).write_text(LABELING_CONFIG, encoding="utf-8")

    def import_tasks(self, path: str | Path, *, skip_invalid: bool = False) -> ImportedReviews:
        """Store the labels of Label Studio's JSON export; the cases of skipped tasks are dismissed.

        Raises InvalidInput when a task is invalid and `skip_invalid` is not set; then nothing was stored.
        """
        file, unannotated = read_annotations(Path(path), name=str(path))
        return ImportedReviews(self._do(store_feedback, file, skip_invalid=skip_invalid), unannotated)

    def dismiss(
        self,
        archive: str,
        *,
        job_id: int | None = None,
        custom_ids: Sequence[str] | None = None,
        reason: NoisyReason | None = None,
        before: datetime | None = None,
    ) -> int:
        """Dismiss open noisy cases of an archive: they are not found again, and do not keep their job from `retention`.

        Only those of this job, these questions of it, with this reason, and that were logged before this time; returns
        how many. Raises UsageError for an unknown archive, and for an unknown or unneeded custom_id.
        """
        if custom_ids is not None and job_id is None:
            raise UsageError("custom_ids belong to a job: name it, too")
        return self._of_archive(
            archive, dismiss_cases, job_id=job_id, custom_ids=custom_ids, reason=reason, before=before
        )

    def list(
        self,
        archive: str,
        *,
        state: NoisyState | None = None,
        reason: NoisyReason | None = None,
        limit: int | None = None,
    ) -> list[NoisyView]:
        """The noisy cases of an archive, those of the newest job first. Raises UsageError for an unknown archive."""
        return self._of_archive(archive, noisy.list_cases, state=state, reason=reason, limit=limit)
