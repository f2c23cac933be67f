"""Parse the notifications of object stores: payload in, (bucket, key) pairs out. Pure functions.

There are two formats. S3 records, as MinIO and AWS send them, in a webhook's message or in the entries of a Redis list:
keys are URL-encoded with `+` for a space. SeaweedFS's filer webhook: one path `/buckets/BUCKET/KEY`, not encoded, and
two for a rename. The kind of change is not used: the object itself is observed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

from ragllava.errors import UsageError
from ragllava.stores.objects import MAX_KEY_BYTES

MAX_BUCKET = 63

NamedObject = tuple[str, str]  # bucket and key

_FILER_ROOT = "/buckets/"
_DEPTH = 4  # of nested lists and objects around records
_UNKNOWN_FORMAT = "this is not a notification of an object store: expected S3 records or a SeaweedFS filer event"


def read_notification(payload: bytes) -> list[NamedObject]:
    """The objects that one message names, in order; none for a store's test message.

    Folders, parts of unfinished uploads, the store's internal files and invalid names are left out. Raises UsageError
    for a payload in neither format.
    """
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        raise UsageError(_UNKNOWN_FORMAT) from None
    if isinstance(message, dict) and "event_type" in message:
        objects = list(_filer_objects(message))
    elif isinstance(message, dict) and (message.get("Event") == "s3:TestEvent" or message.get("Records") == []):
        objects = []  # AWS and MinIO send one of these when a notification is set up
    else:
        records = list(_records(message, _DEPTH))
        if not records:
            raise UsageError(_UNKNOWN_FORMAT)
        objects = [named for record in records for named in _record_object(record)]
    return [named for named in objects if _is_valid(named)]


def _records(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    if depth == 0:
        return
    if isinstance(value, list):
        for entry in value:
            yield from _records(entry, depth - 1)
    elif isinstance(value, dict):
        if isinstance(value.get("s3"), dict):
            yield value
        else:  # a webhook's message, or an entry of a Redis list
            for name in ("Records", "Event"):
                yield from _records(value.get(name), depth - 1)


def _record_object(record: dict[str, Any]) -> Iterator[NamedObject]:
    try:
        bucket, key = record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
    except (KeyError, TypeError):
        return
    if isinstance(bucket, str) and isinstance(key, str):
        yield bucket, unquote_plus(key, errors="surrogateescape")


def _filer_objects(message: dict[str, Any]) -> Iterator[NamedObject]:
    body = _mapping(message.get("message"))
    old, new = _mapping(body.get("old_entry")), _mapping(body.get("new_entry"))
    if old.get("is_directory") or new.get("is_directory"):
        return
    paths = [message.get("key")]
    if new and isinstance(body.get("new_parent_path"), str):
        paths.append(f"{body['new_parent_path']}/{new.get('name')}")
    for path in dict.fromkeys(path for path in paths if isinstance(path, str)):
        if path.startswith(_FILER_ROOT):
            bucket, _, key = path.removeprefix(_FILER_ROOT).partition("/")
            if not key.startswith(".uploads/"):
                yield bucket, key


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_valid(named: NamedObject) -> bool:
    bucket, key = named
    try:
        size = len(key.encode())
        bucket.encode("ascii")
    except UnicodeEncodeError:  # a lone surrogate, or not the name of a bucket
        return False
    is_bucket = 0 < len(bucket) <= MAX_BUCKET and not bucket.startswith(".") and "\x00" not in bucket
    return is_bucket and 0 < size <= MAX_KEY_BYTES and "\x00" not in key and not key.endswith("/")
