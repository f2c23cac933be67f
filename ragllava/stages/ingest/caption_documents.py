"""Caption files as other programs write them, as records of a picture's name and its caption.

- COCO: `images` and `annotations` with `caption`, joined by `image_id`; also a list of annotations alone, whose
  pictures have the twelve digits of their id as name.
- Karpathy's splits of COCO and Flickr: `images` with `filename` and `sentences`.
- A JSON object of captions, or of objects, by name of the picture.
- Flickr30k: lines `picture.jpg#0<tab>caption`. Conceptual Captions: lines `caption<tab>address` or the reverse.
- `exiftool -csv` and `-json`: `SourceFile`, and captions under the names of their standards.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ragllava.imaging.embedded import iso_moment
from ragllava.metadata import clean_key
from ragllava.stages.record_files.layouts import Rejected

EXIFTOOL_NAME = "sourcefile"  # the column that only exiftool writes
_EXIFTOOL_CAPTIONS = ("description", "caption_abstract", "imagedescription", "usercomment", "xpcomment", "comment")
_EXIFTOOL_METADATA = {
    "title": ("title", "objectname", "xptitle"),
    "headline": ("headline",),
    "keywords": ("subject", "keywords", "xpkeywords"),
    "creator": ("creator", "by_line", "artist", "xpauthor"),
    "copyright": ("rights", "copyrightnotice", "copyright"),
    "place": ("location", "sub_location"),
    "city": ("city",),
    "province": ("state", "province_state"),
    "country": ("country", "country_primarylocationname"),
    "taken": ("datetimeoriginal", "datecreated"),
    "digitized": ("createdate",),
    "rating": ("rating",),
    "camera": ("model",),
    "latitude": ("gpslatitude",),
    "longitude": ("gpslongitude",),
}
_GROUP = re.compile(r"[A-Za-z0-9]+:")  # of `exiftool -G`: `XMP:Description`
_ADDRESS = re.compile(r"https?://\S+")
_TOKEN_NAME = re.compile(r"\S.*\.\w{2,5}#\d{1,2}")


def unfold(document: Any) -> Iterable[Any]:
    """The records of a JSON file that is one value. Raises Rejected for annotations that are no captions."""
    if not isinstance(document, dict):
        return document if isinstance(document, list) else [document]
    images, annotations = document.get("images"), document.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):
        return _coco(images, annotations)
    if isinstance(images, list):
        return [_karpathy(image) for image in images]
    values = document.values()
    if values and all(isinstance(value, dict) for value in values):
        return [{"file": name, **value} for name, value in document.items()]
    is_by_name = all(isinstance(value, str | list) for value in values) and all("." in name for name in document)
    if document and is_by_name:
        return [{"file": name, "caption": value} for name, value in document.items()]
    return [document]


def headerless(first_row: list[str]) -> list[str] | None:
    """The columns of a tab-separated file by its first row, if that is no header."""
    if len(first_row) != 2:
        return None
    first, second = (cell.strip() for cell in first_row)
    if _TOKEN_NAME.fullmatch(first):
        return ["file", "caption"]
    if _ADDRESS.fullmatch(second):
        return ["caption", "url"]
    return ["url", "caption"] if _ADDRESS.fullmatch(first) else None


def is_exiftool(names: Iterable[str]) -> bool:
    """Whether the columns or keys are those of exiftool."""
    return any(clean_key(name) == EXIFTOOL_NAME for name in names)


def exiftool_values(record: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The captions of one record in their order of precedence, and the metadata by our keys (imaging/embedded.py)."""
    values: dict[str, Any] = {}
    for name, value in record.items():
        values.setdefault(clean_key(_GROUP.sub("", name)), value)
    captions = [text for key in _EXIFTOOL_CAPTIONS if isinstance(text := values.get(key), str)]
    metadata = {
        key: next((values[name] for name in names if values.get(name) not in (None, "")), None)
        for key, names in _EXIFTOOL_METADATA.items()
    }
    for key in ("taken", "digitized"):
        metadata[key] = iso_moment(str(metadata[key])) if metadata[key] else None
    return captions, metadata


def _coco(images: list[Any], annotations: list[Any]) -> list[dict[str, Any]]:
    captions: dict[Any, list[Any]] = defaultdict(list)
    for annotation in annotations:
        if isinstance(annotation, dict) and annotation.get("caption") is not None:
            captions[str(annotation.get("image_id"))].append(annotation["caption"])
    if annotations and not captions:
        raise Rejected("missing_column", "the annotations have no `caption`; COCO's captions have a file of their own")
    return [
        {"file": image.get("file_name"), "caption": captions[str(image.get("id"))]}
        for image in images
        if isinstance(image, dict) and str(image.get("id")) in captions
    ]


def _karpathy(image: Any) -> Any:
    if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
        return image
    sentences = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in image["sentences"]]
    described = {"file": image.get("filename") or image.get("file_name"), "caption": sentences}
    return described | ({"split": image["split"]} if "split" in image else {})
