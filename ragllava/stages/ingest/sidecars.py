"""Captions and metadata in files beside a picture, which belong to it by their names (sidecars).

| file | of `dog.png` | holds |
|---|---|---|
| text | `dog.png.txt`, `dog.txt` | the caption; its lines are joined |
| text of Kohya's tools | `dog.png.caption`, `dog.caption` | the caption |
| JSON | `dog.png.json`, `dog.json` | `caption` and other keys, as in WebDataset |
| Google Takeout | `dog.png.supplemental-metadata.json` (cut after 46 characters), `dog.png.json` | description, time |
| XMP | `dog.png.xmp`, `dog.xmp` | what an XMP packet in a picture holds (imaging/embedded.py) |

A text without a letter is no caption but, for example, a list of boxes. Lines such as `de.utf8=Ein Frosch.` are
translations and left out. An empty file says that the picture has no caption.
"""

from __future__ import annotations

import codecs
import datetime
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ragllava.imaging.embedded import parse_xmp
from ragllava.metadata import Metadata, clean_key, clean_metadata
from ragllava.stages.ingest.captions import CAPTION_COLUMNS, NOTHING, Description, described, first_description

MAX_SIDECAR_BYTES = 2**20  # read of a sidecar

ENDINGS = (".txt", ".caption", ".json", ".xmp")  # in their order of precedence

_TAKEOUT_TITLE = 46  # characters of a name that Google Takeout keeps before `.json`
_TAKEOUT_ENDING = ".supplemental-metadata"
_NUMBERED = re.compile(r"(.+)(\(\d+\))(\.\w+)")  # Takeout: dog(1).png has dog.png(1).json
_TRANSLATION = re.compile(r"[A-Za-z]{2,3}(?:[_@-]\w+)*\.utf-?8=.*", re.IGNORECASE)
_BOOKKEEPING = frozenset({"key", "status", "error_message", "sha256", "md5", "exif"})  # of img2dataset
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def sidecar_names(name: str, *, of_sample: bool = False) -> list[str]:
    """The files that may belong to the picture `name`, in their order of precedence.

    `of_sample`: the picture is in a tar file of WebDataset, where the files of a sample share their name up to the
    first dot (`7.left.png`, `7.txt`).
    """
    folder, base = posixpath.split(name)
    stems = [name, posixpath.splitext(name)[0]]
    if of_sample:
        stems.append(posixpath.join(folder, base.partition(".")[0]))
    names = [f"{stem}{ending}" for ending in ENDINGS[:2] for stem in stems]
    names += [posixpath.join(folder, takeout) for takeout in _takeout_names(base)]
    names += [f"{stem}{ending}" for ending in ENDINGS[2:] for stem in stems]
    return list(dict.fromkeys(names))


def sidecar_stems(name: str) -> list[str]:
    """With what the names of the pictures begin that a sidecar may belong to, each followed by nothing or a dot."""
    stem = posixpath.splitext(name)[0]
    folder, base = posixpath.split(stem)
    return [stem, posixpath.join(folder, base.partition(".")[0])]


def is_sidecar(name: str) -> bool:
    """Whether a file of this name may be a sidecar of a picture."""
    return name.lower().endswith(ENDINGS)


def read_sidecar(name: str, data: bytes) -> Description:
    """What a sidecar says; NOTHING for a file that is none, or is damaged."""
    ending = posixpath.splitext(name)[1].lower()
    if ending == ".json":
        return _read_json(data)
    if ending == ".xmp":
        try:
            return _of_embedded(parse_xmp(data))
        except ValueError:
            return NOTHING
    return _read_text(data)


def combined(sidecars: Iterable[Description]) -> Description:
    """What several sidecars of a picture say, in their order of precedence."""
    return first_description(*sidecars)


def decode_text(data: bytes) -> str:
    """Text by its byte order mark, else UTF-8, else Windows-1252, which can decode any bytes."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start > len(data) - 4 and len(data) >= MAX_SIDECAR_BYTES:  # a character cut by the limit
            return data[: error.start].decode("utf-8")
        return data.decode("cp1252", "replace")


def _takeout_names(base: str) -> Iterator[str]:
    yield f"{(base + _TAKEOUT_ENDING)[:_TAKEOUT_TITLE]}.json"
    yield f"{base[:_TAKEOUT_TITLE]}.json"
    if numbered := _NUMBERED.fullmatch(base):
        title, number = numbered[1] + numbered[3], numbered[2]
        yield f"{(title + _TAKEOUT_ENDING)[:_TAKEOUT_TITLE]}{number}.json"
        yield f"{title[:_TAKEOUT_TITLE]}{number}.json"


def _read_text(data: bytes) -> Description:
    lines = decode_text(data).splitlines()
    text = " ".join(line for line in lines if not _TRANSLATION.fullmatch(line.strip()))
    if not text.strip("\x00\ufeff \t"):
        return described("")
    return described(text) if any(map(str.isalpha, text)) else NOTHING


def _read_json(data: bytes) -> Description:
    try:
        value = json.loads(decode_text(data))
    except (ValueError, RecursionError):
        return NOTHING
    if not isinstance(value, dict):
        return NOTHING
    if "photoTakenTime" in value or ("title" in value and "googlePhotosOrigin" in value):
        return _of_takeout(value)
    by_key = {clean_key(str(name)): name for name in reversed(value)}
    name = next((by_key[key] for key in CAPTION_COLUMNS if isinstance(value.get(by_key.get(key)), str | list)), None)
    if name is None:
        return NOTHING
    parts = value[name] if isinstance(value[name], list) else [value[name]]
    text = " ".join(part for part in parts if isinstance(part, str))
    others = {key: item for key, item in value.items() if key != name and clean_key(str(key)) not in _BOOKKEEPING}
    return described(text, clean_metadata(others))


def _of_takeout(value: dict[str, Any]) -> Description:
    description = value.get("description")
    metadata: Metadata = {"taken": _takeout_time(value.get("photoTakenTime"))}
    place = value.get("geoData")
    if isinstance(place, dict) and (place.get("latitude") or place.get("longitude")):
        metadata |= {key: place.get(key) for key in ("latitude", "longitude")}
    people = value.get("people")
    metadata["people"] = [person.get("name") for person in people if isinstance(person, dict)] if people else None
    metadata["favorited"] = value.get("favorited")
    text = description if isinstance(description, str) and description.strip() else None
    cleaned = clean_metadata(metadata)
    return Description(None, cleaned) if text is None else described(text, cleaned)


def _takeout_time(value: Any) -> str | None:
    try:
        moment = datetime.datetime.fromtimestamp(int(value["timestamp"]), datetime.UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _of_embedded(values: Metadata) -> Description:
    caption = values.pop("caption", None)
    return Description(None, values or None) if caption is None else described(str(caption), values or None)
