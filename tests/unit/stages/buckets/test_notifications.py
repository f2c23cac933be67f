"""Notifications in both formats of object stores, and invalid ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.errors import UsageError
from ragllava.stages.buckets.notifications import read_notification
from ragllava.stages.buckets.object_captions import metadata_caption


def record(key: str, bucket: str = "cards", event: str = "s3:ObjectCreated:Put") -> dict[str, Any]:
    """One S3 record; the key is URL-encoded, as stores send it."""
    return {
        "eventVersion": "2.0",
        "eventSource": "minio:s3",
        "eventName": event,
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 5, "eTag": "e", "sequencer": "18"}},
    }


def filer(key: str, kind: str = "create", **message: Any) -> dict[str, Any]:
    """What SeaweedFS's filer posts."""
    return {"key": key, "event_type": kind, "message": message}


ENTRY = {"name": "a.png", "attributes": {"file_size": 5, "mime": "image/png"}}
FOLDER = {"name": "in", "is_directory": True}


@pytest.mark.parametrize(
    ("message", "named"),
    [
        # MinIO's webhook: the key beside the records is not encoded, those in the records are.
        (
            {"EventName": "s3:ObjectCreated:Put", "Key": "cards/in/a b.png", "Records": [record("in/a+b.png")]},
            [("cards", "in/a b.png")],
        ),
        ({"Records": [record("gr%C3%BCn%2B1.png"), record("x", "other")]}, [("cards", "grün+1.png"), ("other", "x")]),
        ({"Records": [record("a.png", event="s3:ObjectRemoved:Delete")]}, [("cards", "a.png")]),
        # MinIO's Redis list, format access.
        ([{"Event": [record("in%2Fa.png")], "EventTime": "2026-11-25T10:00:00Z"}], [("cards", "in/a.png")]),
        # AWS says so when a notification is set up.
        ({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "cards"}, []),
        ({"Records": []}, []),
        # SeaweedFS: the path as it is.
        (filer("/buckets/cards/in/a+b %41.png", new_entry=ENTRY), [("cards", "in/a+b %41.png")]),
        (filer("/buckets/cards/in/a.png", "delete", old_entry=ENTRY), [("cards", "in/a.png")]),
        (
            filer(
                "/buckets/cards/in/a.png", "rename", old_entry=ENTRY, new_entry=ENTRY | {"name": "b.png"},
                new_parent_path="/buckets/other/out",
            ),
            [("cards", "in/a.png"), ("other", "out/b.png")],
        ),
        (
            filer("/buckets/cards/in/a.png", new_entry=ENTRY, new_parent_path="/buckets/cards/in"),
            [("cards", "in/a.png")],
        ),
        # Folders, parts of an upload, its own bookkeeping, and what is in no bucket.
        (filer("/buckets/cards/in", new_entry=FOLDER), []),
        (filer("/buckets/cards", "delete", old_entry=FOLDER), []),
        (filer("/buckets/cards/.uploads/5c/0001.part", new_entry=ENTRY), []),
        (filer("/buckets/.system/owners/x", new_entry=ENTRY), []),
        (filer("/etc/seaweedfs/filer.conf", "update", old_entry=ENTRY, new_entry=ENTRY), []),
    ],
)  # fmt: skip
def test_the_objects_that_a_message_names(message: Any, named: list[tuple[str, str]]) -> None:
    assert read_notification(json.dumps(message).encode()) == named


@pytest.mark.parametrize(
    "key", ["", "a\x00.png", "%00", "%ED%A0%80", "folder/", "x" * 1025, "%C3%BC" * 600, 7, None, ["a"]]
)
def test_names_that_no_object_has_are_left_out(key: Any) -> None:
    assert read_notification(json.dumps({"Records": [record(key), record("good.png")]}).encode()) == [
        ("cards", "good.png")
    ]


@pytest.mark.parametrize("bucket", ["", ".system", "x" * 64, "büro", "a\x00", 5])
def test_names_that_no_bucket_has_are_left_out(bucket: Any) -> None:
    assert read_notification(json.dumps({"Records": [record("a.png", bucket)]}).encode()) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"no json", b"\xff\xfe", b"null", b"7", b'"text"', b"[]", b"{}", b'{"Records": {}}', b'{"Records": [7]}',
        b"[" * 100_000, b'{"Records": ' * 50_000, b'{"hello": "world"}',
    ],
)  # fmt: skip
def test_what_is_no_notification_is_refused_with_a_sentence(payload: bytes) -> None:
    with pytest.raises(UsageError, match="not a notification of an object store"):
        read_notification(payload)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["Records", "Event", "s3", "bucket", "name", "object", "key", "event_type", "message",
                         "old_entry", "new_entry", "new_parent_path", "is_directory"]), inner, max_size=5
    ),
    max_leaves=12,
)  # fmt: skip


@given(_json)
def test_whatever_is_sent_gives_storable_names_or_a_sentence(message: Any) -> None:
    try:
        named = read_notification(json.dumps(message).encode())
    except UsageError:
        return
    for bucket, key in named:
        assert bucket.isascii() and 0 < len(key.encode()) <= 1_024 and "\x00" not in key


@pytest.mark.parametrize(
    ("metadata", "caption"),
    [
        ({}, None),
        ({"caption": "  "}, None),
        ({"caption": "a dog"}, "a dog"),
        ({"caption": "gr%C3%BCn%0Aund 50 % blau"}, "grün und 50 % blau"),
        ({"caption": "100%25"}, "100%"),
        ({"caption": "=?UTF-8?B?YsO8cm8=?= door"}, "büro door"),
        ({"caption": "=?UTF-8?Q?b=C3=BCro?="}, "büro"),
        ({"caption": "=?no-such-charset?Q?a?="}, "=?no-such-charset?Q?a?="),
        ({"caption": "b\u00c3\u00bcro"}, "büro"),  # UTF-8 that HTTP showed as Latin-1
        ({"caption": "%FF"}, "%FF"),
    ],
)
def test_captions_in_metadata(metadata: dict[str, str], caption: str | None) -> None:
    assert metadata_caption(metadata) == caption
