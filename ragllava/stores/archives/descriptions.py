"""How the files of the same bytes name and describe one image: its captions and its metadata. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from ragllava.metadata import Metadata, all_metadata, clean_caption
from ragllava.stores.objects import content_key

AnyImage = TypeVar("AnyImage", bound="NewImage")


@dataclass(frozen=True, slots=True)
class NewImage:
    """A decoded picture to be stored; `width` and `height` in pixels, after the rotation that its EXIF data ask for.

    `caption` and `metadata` are what is said beside the picture (an empty caption: that it has none any more);
    `embedded` is what the file says about itself, None if that was not read.
    """

    sha256: str
    source: str
    uri: str
    caption: str | None
    width: int
    height: int
    media_type: str
    metadata: Metadata | None = None
    embedded: Metadata | None = None
    captions: dict[str, str] | None = None  # of a stored image: see `given_captions`


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveImage(NewImage):
    """A stored image. `source` and `uri` are those of the file that names it; a retired image has no embedding.

    `caption` and `metadata` are those that count: what is said beside the picture, else what the file says.
    """

    image_id: int
    retired: bool


def described(image: AnyImage, offered: NewImage) -> AnyImage:
    """The image with the caption and the metadata that it has after `offered` (see store_images)."""
    embedded = image.embedded or {}
    is_named = image.uri == offered.uri
    captions, metadata = given_captions(image), image.metadata
    if offered.caption:
        captions[caption_giver(offered)] = offered.caption
    elif offered.caption is not None:
        captions.pop(caption_giver(offered), None)
    if offered.metadata is not None and (is_named or metadata == all_metadata(embedded, None)):
        metadata = all_metadata(embedded, offered.metadata)
    elif metadata is None:
        metadata = all_metadata(embedded, None)
    return replace(with_captions(image, captions), metadata=metadata)


def given_captions(image: NewImage) -> dict[str, str]:
    """The captions given beside the files of an image's bytes, by `caption_giver`."""
    if image.captions is not None:
        return dict(image.captions)
    is_given = image.caption and image.caption != (image.embedded or {}).get("caption")
    return {caption_giver(image): image.caption} if image.caption and is_given else {}


def caption_giver(image: NewImage) -> str:
    """What a caption is stored under: the uri of the file, or the name of one that was uploaded.

    The uri of an uploaded file is that of its bytes, so that all files of the same bytes have it.
    """
    return image.source if image.uri.endswith(content_key(image.sha256)) else image.uri


def with_captions(image: AnyImage, captions: Mapping[str, str]) -> AnyImage:
    """The image with these captions beside its files, by `caption_giver`: joined, that of the file that names it first;
    without any, it has the caption inside the picture."""
    own = caption_giver(image)
    ordered = [captions[giver] for giver in sorted(captions, key=lambda giver: (giver != own, giver))]
    joined = clean_caption(" ".join(dict.fromkeys(ordered))) or (image.embedded or {}).get("caption")
    return replace(image, caption=joined, captions=dict(captions) if set(captions) - {own} else None)


def renamed(image: AnyImage, source: str, uri: str) -> AnyImage:
    """The image named by another file of its bytes; without a caption of its own, that file has the former one's."""
    captions, after = given_captions(image), replace(image, source=source, uri=uri)
    former = captions.pop(caption_giver(image), None)
    if former is not None:
        captions.setdefault(caption_giver(after), former)
    return with_captions(after, captions)
