"""The stored pictures of archives: their list, and their bytes."""

from __future__ import annotations

from pathlib import Path

from ragllava.client.connections import Namespace
from ragllava.stores.archives import archive
from ragllava.stores.archives.archive import ListedImage
from ragllava.stores.jobs.picture_views import PictureView, view_image


class Pictures(Namespace):
    """Stored pictures."""

    def save(self, sha256: str, path: Path) -> None:
        """Write the bytes of a picture into a file, verified. Raises ObjectMissing, ObjectCorrupt."""
        self._connections.objects.fetch_content(sha256, path)

    def get(self, name: str, image_id: int) -> PictureView:
        """What an archive knows of one image, by its id alone. Raises NotFound."""
        return self._do(view_image, name, image_id)

    def list(self, name: str, *, after: int = 0, limit: int = 100) -> list[ListedImage]:
        """The images of an archive by id, at most `limit` of those with an id above `after`. Raises UsageError."""
        return self._of_archive(name, archive.list_images, after, limit)
