"""What people say about answers, and what they see of doubtful ones."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ragllava.client.jobs import JobClient
from ragllava.errors import ImageRejected, ObjectCorrupt, ObjectMissing
from ragllava.imaging.decode import decode
from ragllava.records import NoisyReason, NoisyState, StoredImage
from ragllava.stages.feedback.files import feedback_of, read_feedback
from ragllava.stages.feedback.label_studio import read_annotations
from ragllava.stages.feedback.labels import QuestionView, StoredFeedback, store_feedback, view_question
from ragllava.stores.archives import archive
from ragllava.stores.learning import noisy
from ragllava.stores.learning.noisy import NoisyView
from ragllava.stores.objects import content_key

THUMBNAIL_SIDE = 256


class ReviewClient(JobClient):
    """What concerns feedback and noisy cases."""

    def feedback(
        self,
        said: Path | Iterable[Mapping[str, Any]],
        *,
        job_id: int | None = None,
        source: str = "person",
        skip_invalid: bool = False,
    ) -> StoredFeedback:
        """Store what a file (.jsonl, .csv), or records with the same keys, say about answers.

        Raises InvalidInput when a line is invalid and `skip_invalid` is not set; then nothing was stored.
        """
        file = (
            read_feedback(said, name=str(said), job_id=job_id)
            if isinstance(said, Path)
            else feedback_of(said, job_id=job_id)
        )
        return store_feedback(self.engine, file, source=source, skip_invalid=skip_invalid)

    def noisy_cases(
        self,
        archive_name: str,
        *,
        state: NoisyState | None = None,
        reason: NoisyReason | None = None,
        limit: int | None = None,
    ) -> list[NoisyView]:
        """The noisy cases of an archive, those of the newest job first."""
        return self._do(
            lambda c: noisy.list_cases(
                c, archive.get_archive(c, archive_name).archive_id, state=state, reason=reason, limit=limit
            )
        )

    def look_into(self, job_id: int, custom_id: str) -> QuestionView:
        """One question with its candidates, reasons and newest label. Raises UsageError for an unknown one."""
        self._require_answers(job_id)
        return self._do(view_question, job_id, custom_id)

    def picture_address(self, image: StoredImage, expires_s: int | None = None) -> str:
        """Where Label Studio finds a picture: its `s3://` address, or a signed one that ends after `expires_s`."""
        key = content_key(image.sha256)
        if expires_s is None:
            return f"s3://{self.objects.bucket}/{key}"
        return self.objects.presigned_url(key, expires_s)

    def thumbnail(self, sha256: str) -> bytes | None:
        """A small JPEG of a stored picture, None when it cannot be read."""
        try:
            picture = decode(self.objects.get_content(sha256), max_side=THUMBNAIL_SIDE).picture
        except (ObjectMissing, ObjectCorrupt, ImageRejected):
            return None
        return _jpeg(picture)

    def review(self, path: Path, *, skip_invalid: bool = False) -> tuple[StoredFeedback, int]:
        """Store the labels of Label Studio's JSON export; also returns how many tasks nobody has annotated yet."""
        file, waiting = read_annotations(path, name=str(path))
        return store_feedback(self.engine, file, skip_invalid=skip_invalid), waiting


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
