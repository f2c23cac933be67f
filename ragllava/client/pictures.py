"""The stored pictures of archives: their lists, their bytes, their captions, and what is like them."""

from __future__ import annotations

from pathlib import Path

from ragllava.client.connections import Namespace
from ragllava.filters import parse_where
from ragllava.stages.pictures.captions import edit_caption
from ragllava.stages.pictures.duplicates import Duplicates, find_duplicates
from ragllava.stages.pictures.thumbnails import thumbnail
from ragllava.stores.archives import filtering, image_lists, texts
from ragllava.stores.archives.archive import ListedImage
from ragllava.stores.archives.image_lists import (
    ArchiveCard,
    ImageOrder,
    ImageState,
    ListKey,
    ListOptions,
    Marks,
    StoredContent,
)
from ragllava.stores.jobs.picture_views import PictureView, view_image


class Pictures(Namespace):
    """Stored pictures."""

    def save(self, sha256: str, path: Path) -> None:
        """Write the bytes of a picture into a file, verified. Raises ObjectMissing, ObjectCorrupt."""
        self._connections.objects.fetch_content(sha256, path)

    def get(self, name: str, image_id: int) -> PictureView:
        """What an archive knows of one image, by its id alone. Raises NotFound."""
        return self._do(view_image, name, image_id)

    def content(self, name: str, image_id: int) -> StoredContent:
        """The hash and the type of a picture's bytes. Raises NotFound."""
        return self._of_archive(name, image_lists.content_of, image_id)

    def thumbnail(self, sha256: str) -> bytes | None:
        """A JPEG of a stored picture, its longer side at most 256 pixels; None when it cannot be read.

        It is made at the first call and kept beside the picture. Raises ServiceUnavailable when the object store is
        away, and DecoderUnavailable.
        """
        connections = self._connections
        return thumbnail(connections.engine, connections.objects, connections.decoder, sha256)

    def set_caption(self, name: str, image_id: int, caption: str, *, expected: str | None) -> str | None:
        """Replace the caption of a picture, in the search by words too; returns the caption that it has now.

        `expected` is the present one, so that nobody's change is overwritten unseen. An empty caption removes what was
        said beside the picture, and the one inside it counts again. Raises NotFound; Conflict when the caption has
        changed, and when a bound bucket gives it; UsageError for one that is too long.
        """
        return self._do(edit_caption, name, image_id, caption, expected)

    def duplicates(self, name: str, image_id: int) -> Duplicates:
        """Other files with the same bytes, and pictures of the archive that look the same. Raises NotFound."""
        connections = self._connections
        return find_duplicates(connections.engine, name, image_id, self.thumbnail)

    def options(
        self,
        name: str,
        *,
        state: ImageState = ImageState.USED,
        where: str | None = None,
        order: ImageOrder = ImageOrder.ID,
    ) -> ListOptions:
        """Which pictures to list; `where` is a condition as text. Raises UsageError for a wrong one, and for a key of
        metadata that no picture has."""
        options = ListOptions(state, parse_where(where), order)
        self._of_archive(name, filtering.check_keys, name, options.filter)
        return options

    def page(
        self, name: str, options: ListOptions, after: ListKey | None = None, limit: int = 100
    ) -> list[ListedImage]:
        """At most `limit` pictures of a list after a key. Raises UsageError."""
        return self._of_archive(name, image_lists.list_page, options, after, limit)

    def marks(self, name: str, options: ListOptions, every: int) -> Marks:
        """How many pictures a list has, and the key before each further `every` of them. Raises UsageError."""
        return self._of_archive(name, image_lists.list_marks, options, every)

    def count(self, name: str) -> int:
        """How many pictures an archive uses, from a count that is kept: no picture is read. Raises UsageError."""
        return self._of_archive(name, texts.count_images)

    def cards(self) -> list[ArchiveCard]:
        """All archives by name, each with the number of its pictures and the first of them; reads no others."""
        return self._do(image_lists.list_cards)

    def listed(self, name: str, image_ids: list[int]) -> dict[int, ListedImage]:
        """Pictures by id, those that are not there left out. Raises UsageError."""
        return self._of_archive(name, image_lists.load_listed, image_ids)

    def list(self, name: str, *, after: int = 0, limit: int = 100) -> list[ListedImage]:
        """The images of an archive by id, at most `limit` of those with an id above `after`. Raises UsageError."""
        return self.page(name, ListOptions(), ListKey(after), limit)
