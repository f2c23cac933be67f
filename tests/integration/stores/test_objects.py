"""The object store against a real S3 server."""

from __future__ import annotations

import hashlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import pytest
from pydantic import SecretStr

from ragllava.errors import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectTooLarge,
    ServiceUnavailable,
    SettingsError,
    UsageError,
)
from ragllava.settings import Settings
from ragllava.stores.objects import ObjectStore, content_key


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore(settings)


def test_content_lies_under_its_hash(store: ObjectStore) -> None:
    data = b"a postcard"
    sha256 = store.put_content(data, "image/png")
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.put_content(data, "image/png") == sha256
    assert store.get_content(sha256) == data
    assert [(info.key, info.size_bytes) for info in store.list_objects("sha256/")] == [
        (f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}", len(data))
    ]
    store.delete_content(sha256)
    with pytest.raises(ObjectMissing, match=sha256):
        store.get_content(sha256)


def test_damaged_content_is_noticed(store: ObjectStore) -> None:
    sha256 = store.put_content(b"as it was", "image/png")
    store.put(content_key(sha256), b"as it wes")
    with pytest.raises(ObjectCorrupt, match=content_key(sha256)):
        store.get_content(sha256)


def test_keys_with_names(store: ObjectStore) -> None:
    assert not store.exists("jobs/1/results.jsonl")
    store.put("jobs/1/results.jsonl", b"{}\n", "application/x-ndjson")
    store.put("jobs/1/results.jsonl", b"{}\n{}\n", "application/x-ndjson")
    assert store.exists("jobs/1/results.jsonl")
    assert store.get("jobs/1/results.jsonl") == b"{}\n{}\n"
    store.put("jobs/empty", b"")
    assert store.get("jobs/empty") == b""
    store.put("jobs/ü und ?&#.txt", b"odd name")
    assert store.get("jobs/ü und ?&#.txt") == b"odd name"


def test_deleting_what_is_not_there_is_harmless(store: ObjectStore) -> None:
    store.delete("never/was")  # not even the bucket
    store.put("some/key", b"x")
    store.delete("some/key")
    store.delete("some/key")
    assert not store.exists("some/key")


def test_reading_before_anything_was_written(store: ObjectStore) -> None:
    assert list(store.list_objects("")) == []
    with pytest.raises(ObjectMissing):
        store.get("jobs/1/results.jsonl")
    assert store.remove_prefix("jobs/") == 0


def test_listing_is_complete_and_sorted_and_prefixes_are_removed(store: ObjectStore) -> None:
    keys = [f"tree/{branch}/{leaf}" for branch in "abc" for leaf in range(4)]
    for key in [*keys, "treetop", "other"]:
        store.put(key, key.encode())
    assert [info.key for info in store.list_objects("tree/")] == sorted(keys)
    assert store.remove_prefix("tree/b/") == 4
    assert [info.key for info in store.list_objects("")] == sorted(
        [key for key in keys if "/b/" not in key] + ["treetop", "other"]
    )
    with pytest.raises(UsageError, match="whole bucket"):
        store.remove_prefix("")


def test_a_listing_of_more_than_one_page(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.put(f"many/{number:04}", b""), range(1_010)))
    assert [info.key for info in store.list_objects("many/")] == [f"many/{number:04}" for number in range(1_010)]
    assert store.remove_prefix("many/") == 1_010
    assert list(store.list_objects("many/")) == []


def test_a_large_stream_goes_up_in_parts(store: ObjectStore) -> None:
    data = bytes(range(256)) * (20 * 2**20 // 256) + b"tail"
    store.put_stream("large", BytesIO(data), len(data))
    digest = hashlib.sha256()
    with store.open_stream("large") as stream:
        while piece := stream.read(2**20):
            assert len(piece) <= 2**20
            digest.update(piece)
    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()


def test_a_failing_stream_stores_nothing(store: ObjectStore) -> None:
    class Broken(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 2**20:
                raise OSError("the disk is gone")
            return super().read(min(size or 2**20, 2**20))

    with pytest.raises(OSError, match="the disk is gone"):
        store.put_stream("half", Broken(bytes(2**22)), 2**22)
    assert not store.exists("half")


def test_anybody_with_the_address_can_read(store: ObjectStore) -> None:
    store.put("jobs/1/report.html", b"<html>")
    with urllib.request.urlopen(store.presigned_url("jobs/1/report.html", expires_s=60)) as answer:
        assert answer.read() == b"<html>"


def test_many_processes_may_create_the_bucket_at_once(settings: Settings) -> None:
    stores = [ObjectStore(settings) for _ in range(8)]
    together = threading.Barrier(len(stores))

    def write(number: int) -> None:
        together.wait()
        stores[number].put(f"from/{number}", b"x")

    with ThreadPoolExecutor(len(stores)) as threads:
        list(threads.map(write, range(len(stores))))
    assert len(list(stores[0].list_objects("from/"))) == len(stores)


def test_buckets_of_others(settings: Settings, store: ObjectStore) -> None:
    foreign = ObjectStore(settings.model_copy(update={"s3_bucket": f"{settings.s3_bucket[:40]}-other"}))
    foreign.put("in/questions.jsonl", b"0123456789")
    assert store.read_external(foreign.bucket, "in/questions.jsonl").data == b"0123456789"
    assert store.read_external(foreign.bucket, "in/questions.jsonl", max_bytes=10).data == b"0123456789"
    with pytest.raises(ObjectTooLarge, match="larger than the 9 bytes"):
        store.read_external(foreign.bucket, "in/questions.jsonl", max_bytes=9)
    with pytest.raises(ObjectMissing):
        store.read_external(foreign.bucket, "in/none")
    with pytest.raises(ObjectMissing):
        store.read_external("no-such-bucket-anywhere", "in/none")
    store.put_external(f"s3://{foreign.bucket}/out/error.json", b"{}")
    assert foreign.get("out/error.json") == b"{}"
    with pytest.raises(UsageError, match="not an address"):
        store.put_external(f"{foreign.bucket}/out/error.json", b"{}")


def test_a_wrong_key_is_named_as_such(settings: Settings) -> None:
    stranger = ObjectStore(settings.model_copy(update={"s3_secret_key": SecretStr("wrong-secret")}))
    with pytest.raises(SettingsError, match="RAGLLAVA_S3_SECRET_KEY"):
        stranger.put("some/key", b"x")


def test_missing_or_malformed_settings() -> None:
    with pytest.raises(SettingsError, match="ragllava up"):
        ObjectStore(Settings(s3_endpoint=None))
    with pytest.raises(SettingsError, match="host:port"):
        ObjectStore(_settings_for("http://127.0.0.1:9000/path"))


def test_a_store_that_is_away_is_retryable() -> None:
    with socket.socket() as reserved:  # bound, but not listening
        reserved.bind(("127.0.0.1", 0))
        away = ObjectStore(_settings_for(f"127.0.0.1:{reserved.getsockname()[1]}"))
        for call in (lambda: away.put("key", b"x"), lambda: away.get("key"), lambda: list(away.list_objects("key"))):
            with pytest.raises(ServiceUnavailable, match="did not answer") as raised:
                call()
            assert raised.value.retryable


def test_a_connection_that_breaks_in_the_middle_of_a_body_is_retryable() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    with _server_that_says(head + b"half") as port, pytest.raises(ServiceUnavailable):
        ObjectStore(_settings_for(f"127.0.0.1:{port}")).get("key")


def test_an_error_of_the_server_is_retryable() -> None:
    answer = b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\n\r\n"
    with _server_that_says(answer) as port, pytest.raises(ServiceUnavailable):
        ObjectStore(_settings_for(f"127.0.0.1:{port}")).get("key")


def _settings_for(endpoint: str) -> Settings:
    return Settings(s3_endpoint=endpoint, s3_access_key="someone", s3_secret_key=SecretStr("something"))


@contextmanager
def _server_that_says(answer: bytes) -> Iterator[int]:
    """A server on a free port that gives the same answer to everybody and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with client:
                    client.recv(65_536)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
