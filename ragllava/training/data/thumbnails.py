"""Thumbnails of the pictures of a training, for finding near-duplicates. Loads no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from PIL import Image
from sqlalchemy import Engine

from ragllava.imaging.likeness import thumbnail
from ragllava.stores.archives.thumbnails import load_thumbnails, store_thumbnails
from ragllava.stores.database import in_transaction
from ragllava.training.data.snapshot import pictures_to_compare

log = logging.getLogger(__name__)

_AT_ONCE = 64  # pictures that are in memory together; then their thumbnails are stored


def make_thumbnails(
    engine: Engine,
    read: Callable[[Sequence[str]], Mapping[str, Image.Image | str]],
    archives: Sequence[str],
    top_k: int,
    check: Callable[[], None],
) -> None:
    """Make the thumbnails that the labelled questions of these archives need and that are not stored yet.

    `read` returns pictures by their hashes, or one sentence for one that cannot be read, which gets no thumbnail.
    `check` is called often and may raise. Raises UsageError for an unknown archive, and what `read` raises.
    """
    hashes = in_transaction(engine, pictures_to_compare, archives, top_k)
    missing = sorted(hashes - in_transaction(engine, load_thumbnails, hashes).keys())
    for start in range(0, len(missing), _AT_ONCE):
        check()
        made = {}
        for sha256, picture in read(missing[start : start + _AT_ONCE]).items():
            if isinstance(picture, str):
                log.info("no thumbnail", extra={"action": "thumbnail_missing", "sha256": sha256, "reason": picture})
            else:
                made[sha256] = thumbnail(picture)
        in_transaction(engine, store_thumbnails, made)
