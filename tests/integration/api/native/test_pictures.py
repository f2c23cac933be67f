"""Archives and their pictures through HTTP: upload, list, show, read in parts, search, remove."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import text

from ragllava.client import Client, acting
from ragllava.stages.buckets import one_off
from ragllava.stores.access.tenancy import Scope
from ragllava.stores.archives import archive, blobs, word_index
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.objects import content_key, thumbnail_key
from tests.integration.conftest import Postcards
from tests.support.api_shop import Shop
from tests.support.waiting import wait_for


def picture(color: str, format: str = "PNG") -> bytes:
    """A small picture of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, format)
    return buffer.getvalue()


def upload(http: httpx.Client, archive: str, *files: tuple[str, bytes], **fields: str) -> httpx.Response:
    """Send files under their names; one whose name begins with `captions` is a caption file."""
    parts = [("captions" if name.startswith("captions") else "file", (name, data)) for name, data in files]
    return http.post(f"/v1/archives/{archive}/pictures", files=parts, data=fields)


def test_an_archive_is_created_listed_renamed_and_removed(shop: Shop) -> None:
    with shop.http() as http:
        made = http.post("/v1/archives", json={"name": "short-lived"})
        assert (made.status_code, made.json()["images"]) == (201, 0)
        assert http.post("/v1/archives", json={"name": "short-lived"}).status_code == 409
        assert http.post("/v1/archives", json={"name": "No Name"}).status_code == 400
        assert {found["name"] for found in http.get("/v1/archives").json()["data"]} >= {"short-lived", "postcards"}
        assert http.post("/v1/archives/short-lived/rename", json={"name": "postcards"}).status_code == 400
        assert http.post("/v1/archives/short-lived/rename", json={"name": "renamed"}).json()["name"] == "renamed"

        job = upload(http, "renamed", ("red.png", picture("red"))).json()["job"]
        assert shop.wait_for_job(http, job)["counts"] == {"stored": 1}
        planned = http.delete("/v1/archives/renamed", params={"dry_run": True}).json()
        assert (planned["counts"]["images"], planned["removal_id"]) == (1, None)
        begun = http.delete("/v1/archives/renamed")
        assert begun.status_code == 202 and http.get("/v1/archives/renamed").status_code == 404
        shop_is_done(shop, http, begun.json()["removal_id"])


def shop_is_done(shop: Shop, http: httpx.Client, removal_id: int) -> None:
    """Wait until the worker has finished a removal that the API has begun."""

    def is_finished() -> bool:
        lines = {line["erasure_id"]: line for line in http.get("/v1/removals").json()["data"]}
        return lines[removal_id]["finished_at"] is not None

    wait_for("the removal", is_finished, 60)


def test_pictures_come_with_captions_and_metadata(shop: Shop) -> None:
    with shop.http("write", "coins") as http:
        said = {"gold.png": "A gold coin", "old/silver.png": {"caption": "A silver coin", "metadata": {"year": 1890}}}
        files = (("gold.png", picture("gold")), ("old/silver.png", picture("silver")), ("notes.mp4", b"no picture"))
        answer = upload(http, "coins", *files, descriptions=json.dumps(said), name="first coins")
        assert answer.status_code == 202, answer.text
        queued = answer.json()
        assert (queued["files"], queued["captions"], queued["passed_over"]) == (2, 2, {".mp4": 1})
        job = shop.wait_for_job(http, queued["job"])
        assert (job["name"], job["counts"], job["archive"]) == ("first coins", {"stored": 2}, "coins")

        listed = http.get("/v1/archives/coins/pictures").json()
        by_source = {row["source"]: row for row in listed["data"]}
        assert by_source["gold.png"]["caption"] == "A gold coin"
        shown = http.get(f"/v1/archives/coins/pictures/{by_source['old/silver.png']['image_id']}").json()
        assert (shown.get("caption"), shown.get("metadata")) == ("A silver coin", {"year": 1890}), shown
        assert [index["state"] for index in shown["indexes"]] == ["active"]


def test_a_zip_and_a_caption_file_are_read(shop: Shop) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as package:
        package.writestr("tin.png", picture("gray"))
        package.writestr("bad.png", b"this is no picture")
    with shop.http("write", "coins") as http:
        captions = ("captions.csv", b"file,caption\ntin.png,A tin coin\n")
        job = shop.wait_for_job(http, upload(http, "coins", ("all.zip", packed.getvalue()), captions).json()["job"])
        assert job["counts"] == {"stored": 1, "rejected": 1}
        assert [row["source"] for row in http.get("/v1/archives/coins/rejected").json()["data"]] == ["all.zip/bad.png"]
        found = [row for row in http.get("/v1/archives/coins/pictures").json()["data"] if "tin" in row["source"]]
        assert [row["caption"] for row in found] == ["A tin coin"]


def test_a_repeated_upload_stores_nothing_twice(shop: Shop) -> None:
    with shop.http("write", "coins") as http:
        copper = ("copper.png", picture("brown"))
        first, second = (upload(http, "coins", copper).json()["job"] for _ in range(2))
        assert first != second
        counts = [shop.wait_for_job(http, job)["counts"] for job in (first, second)]
        assert counts == [{"stored": 1}, {"duplicate": 1}]

        def keyed(data: bytes) -> httpx.Response:
            files = [("file", ("zinc.png", data))]
            headers = {"idempotency-key": "zinc"}
            return http.post("/v1/archives/coins/pictures", files=files, headers=headers)

        assert keyed(picture("blue")).json()["job"] == keyed(picture("blue")).json()["job"]
        assert keyed(picture("green")).status_code == 422


BAD_NAMES = ["../up.png", "/etc/passwd", "a//b.png", "a/./b.png", "x" * 300 + ".png", "a\x7fb.png"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_elsewhere_is_refused(shop: Shop, name: str) -> None:
    with shop.http("write", "coins") as http:
        answer = upload(http, "coins", (name, picture("red")))
        assert answer.status_code == 400 and "cannot be the name of a file" in answer.json()["error"]["message"]


def test_an_upload_without_pictures_is_refused(shop: Shop) -> None:
    with shop.http("write", "coins") as http:
        assert http.post("/v1/archives/coins/pictures", json={}).status_code == 400
        assert upload(http, "coins", ("captions.csv", b"file,caption\n")).status_code == 400
        assert upload(http, "coins", ("film.mp4", b"...")).status_code == 400
        assert upload(http, "coins", ("a.png", picture("red")), descriptions="[1]").status_code == 400
        twice = upload(http, "coins", ("a.png", picture("red")), ("a.png", picture("blue")))
        assert twice.status_code == 400 and "two files" in twice.json()["error"]["message"]


def test_bytes_are_read_whole_in_parts_and_not_again(shop: Shop, postcards: Postcards) -> None:
    with shop.http("read", "postcards") as http:
        row = http.get("/v1/archives/postcards/pictures", params={"limit": 1}).json()["data"][0]
        where = f"/v1/archives/postcards/pictures/{row['image_id']}"
        whole = http.get(f"{where}/content")
        expected = next(path for path in postcards.written.pictures.rglob("*") if path.name == row["source"])
        assert whole.content == expected.read_bytes() and whole.headers["content-type"] == row["media_type"]
        assert hashlib.sha256(whole.content).hexdigest() == row["sha256"] == whole.headers["etag"].strip('"')
        assert "sandbox" in whole.headers["content-security-policy"]

        part = http.get(f"{where}/content", headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        beyond = http.get(f"{where}/content", headers={"range": f"bytes={len(whole.content)}-"})
        assert beyond.status_code == 416
        for known in (whole.headers["etag"], f'"x", W/{whole.headers["etag"]}', "*"):
            again = http.get(f"{where}/content", headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")

        small = http.get(f"{where}/thumbnail")
        with Image.open(io.BytesIO(small.content)) as opened:
            assert opened.format == "JPEG" and max(opened.size) <= 256
        assert "immutable" in small.headers["cache-control"] and "private" in small.headers["cache-control"]
        again = http.get(f"{where}/thumbnail", headers={"if-none-match": small.headers["etag"]})
        assert again.status_code == 304
        objects = shop.workshop.resources.objects
        objects.put(thumbnail_key(row["sha256"]), b"kept")
        assert http.get(f"{where}/thumbnail").content == b"kept"  # nothing is decoded again
        objects.delete(thumbnail_key(row["sha256"]))
        assert http.get(f"{where}/thumbnail").content == small.content


def test_pages_of_pictures_follow_each_other(shop: Shop) -> None:
    with shop.http("read", "postcards") as http:
        seen, after = [], 0
        while True:
            page = http.get("/v1/archives/postcards/pictures", params={"limit": 8, "after": after}).json()
            seen += [row["image_id"] for row in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert len(seen) == 20 == len(set(seen)) and seen == sorted(seen)
        past = http.get("/v1/archives/postcards/pictures", params={"after": after}).json()
        assert past == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_a_search_finds_what_the_command_finds(shop: Shop) -> None:
    with shop.http("ask", "postcards") as http:
        answer = http.get("/v1/archives/postcards/search", params={"q": "lighthouse", "limit": 5})
        assert answer.status_code == 200, answer.text
        found = answer.json()["data"]
    expected = shop.client.archives.search("postcards", "lighthouse", limit=5)
    assert [row["image_id"] for row in found] == [row.image.image_id for row in expected]
    assert [row["caption"] for row in found] == [row.image.caption for row in expected]
    assert [row["retrieval_score"] for row in found] == pytest.approx([row.retrieval_score for row in expected])


def test_a_search_finds_pictures_like_one_that_is_sent(shop: Shop) -> None:
    with shop.http("ask", "postcards") as http:
        where = "/v1/archives/postcards"
        row = http.get(f"{where}/pictures", params={"limit": 3}).json()["data"][-1]
        data = http.get(f"{where}/pictures/{row['image_id']}/content").content
        url = "data:image/png;base64," + base64.b64encode(data).decode()

        def found(**body: Any) -> list[dict[str, Any]]:
            answer = http.post(f"{where}/search", json={"limit": 5} | body)
            assert answer.status_code == 200, answer.text
            return list(answer.json()["data"])

        alone = found(image_url=url)
        assert alone[0]["image_id"] == row["image_id"] and alone[0]["retrieval_score"] == pytest.approx(1, abs=1e-3)
        assert [hit["picture_rank"] for hit in alone] == list(range(5))
        file = http.post("/v1/files", files={"file": ("a.png", data)}, data={"purpose": "vision"}).json()["id"]
        assert found(image_url={"url": file}) == alone
        [first] = http.get(f"{where}/search", params={"q": "lighthouse", "limit": 1}).json()["data"]
        both = found(image_url=url, q="lighthouse")
        assert [hit["image_id"] for hit in both[:2]] == [row["image_id"], first["image_id"]] and len(both) == 5
        assert found(image_url=url, q="lighthouse", retrieval="picture") == alone
        refused = {
            "https://example.org/a.png": "are not fetched from",
            "data:image/png;base64,AAAA": "cannot be read",
            "/etc/passwd": "not the address of a picture",
        }
        for address, sentence in refused.items():
            answer = http.post(f"{where}/search", json={"image_url": address})
            assert (answer.status_code, sentence in answer.text) == (400, True), answer.text
        fresh = picture("orchid")
        wrong: list[dict[str, Any]] = [{"retrieval": "caption"}, {"where": "no.such.key = 1"}, {"where": "="}]
        for body in wrong:
            sent = {"image_url": "data:image/png;base64," + base64.b64encode(fresh).decode()} | body
            assert http.post(f"{where}/search", json=sent).status_code == 400
        stored = shop.workshop.resources.objects.exists(content_key(hashlib.sha256(fresh).hexdigest()))
        assert not stored, "nothing of a search that is wrong is stored"
        assert http.post("/v1/archives/coins/search", json={"image_url": url}).status_code == 404


def test_a_picture_is_removed_from_everywhere(shop: Shop) -> None:
    with shop.http("write", "coins") as http, shop.http() as admin:
        job = upload(http, "coins", ("lead.png", picture("navy"))).json()["job"]
        shop.wait_for_job(http, job)
        [row] = [row for row in http.get("/v1/archives/coins/pictures").json()["data"] if row["source"] == "lead.png"]
        where = f"/v1/archives/coins/pictures/{row['image_id']}"
        assert http.get(f"{where}/thumbnail").status_code == 200
        assert shop.workshop.resources.objects.exists(thumbnail_key(row["sha256"]))
        assert http.delete(where, params={"dry_run": True}).json()["removal_id"] is None
        begun = http.delete(where)
        assert begun.status_code == 202, begun.text
        shop_is_done(shop, admin, begun.json()["removal_id"])
        assert http.get(where).status_code == 404 and http.get(f"{where}/content").status_code == 404
        for key in (content_key(row["sha256"]), thumbnail_key(row["sha256"])):
            assert not shop.workshop.resources.objects.exists(key)


def test_a_thumbnail_made_while_its_picture_is_removed_does_not_stay(shop: Shop) -> None:
    objects, engine = shop.workshop.resources.objects, shop.workshop.engine
    sha256 = shop.workshop.resources.objects.put_content(picture("salmon"), "image/png")
    with engine.begin() as connection:
        blobs.announce_blobs(connection, [NewBlob(sha256, 9, "image/png")])
        blobs.make_live(connection, [sha256])
    decode = shop.client.decoder.decode

    def removed_meanwhile(*given: Any, **options: Any) -> Any:
        with engine.begin() as connection:
            connection.execute(text("UPDATE blobs SET state = 'deleting' WHERE sha256 = :of"), {"of": sha256})
        with engine.begin() as connection:
            assert blobs.delete_blob(connection, sha256, objects.delete_content)
        return decode(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shop.client.decoder, "decode", removed_meanwhile)
        assert shop.client.pictures.thumbnail(sha256) is not None
    assert not objects.exists(thumbnail_key(sha256)) and not objects.exists(content_key(sha256))


def test_an_edited_caption_is_what_words_find(shop: Shop) -> None:
    with shop.http("write", "coins") as http:
        sent = upload(http, "coins", ("edit.png", picture("plum")), descriptions='{"edit.png": "a quiet harbour"}')
        shop.wait_for_job(http, sent.json()["job"])
        [row] = [row for row in http.get("/v1/archives/coins/pictures").json()["data"] if row["source"] == "edit.png"]
        where = f"/v1/archives/coins/pictures/{row['image_id']}"

        def found(word: str) -> list[int]:
            query = {"q": word, "retrieval": "caption"}
            return [hit["image_id"] for hit in http.get("/v1/archives/coins/search", params=query).json()["data"]]

        assert found("harbour") == [row["image_id"]]
        edit = {"caption": "a loud\x00  foundry", "expected": "a quiet harbour"}
        changed = http.patch(where, json=edit)
        assert changed.status_code == 400 or changed.json()["caption"] == "a loud foundry", changed.text
        edit["caption"] = "a loud  foundry"
        changed = http.patch(where, json={**edit, "expected": http.get(where).json()["caption"]})
        assert changed.json() == {"object": "picture", "image_id": row["image_id"], "caption": "a loud foundry"}
        assert found("foundry") == [row["image_id"]] and found("harbour") == []
        lost = http.patch(where, json=edit)
        assert lost.status_code == 409 and "changed meanwhile" in lost.json()["error"]["message"]
        long = http.patch(where, json={"caption": "x" * 20_000, "expected": "a loud foundry"})
        assert long.status_code == 400 and "at most" in long.json()["error"]["message"]
        gone = http.patch(where, json={"caption": "", "expected": "a loud foundry"})
        assert gone.json()["caption"] is None and found("foundry") == []
        assert (
            http.patch("/v1/archives/coins/pictures/999999", json={"caption": "x", "expected": None}).status_code == 404
        )
    with shop.http("ask", "coins") as reader:
        assert reader.patch(where, json={"caption": "x", "expected": None}).status_code == 403
    with shop.workshop.engine.begin() as connection:
        archive_id = archive.get_archive(connection, "coins").archive_id
        assert word_index.disagreements(connection, archive_id).number == 0


def test_large_caption_files_below_a_prefix_are_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_off, "MAX_CAPTION_BYTES", 2**20)
    objects = shop.workshop.resources.objects
    objects.make_bucket("shared")
    objects.put_external("s3://shared/large/quay.png", picture("olive"), "image/png")
    for folder in ("a", "b"):  # each alone would do
        objects.put_external(f"s3://shared/large/{folder}/captions.csv", b"file,caption\n" + bytes(600_000))
    with shop.http("write", "coins") as http:
        refused = http.post("/v1/archives/coins/ingest", json={"address": "s3://shared/large/"})
    assert refused.status_code == 400 and "more than 1 MiB; bind it" in refused.json()["error"]["message"]


def test_a_prefix_is_ingested_once(shop: Shop) -> None:
    objects = shop.workshop.resources.objects
    objects.make_bucket("shared")
    objects.put_external("s3://shared/once/2019/boat.png", picture("maroon"), "image/png")
    objects.put_external("s3://shared/once/quay.png", picture("olive"), "image/png")
    objects.put_external("s3://shared/once/captions.csv", b"file,caption\n2019/boat.png,the old boat\n")
    objects.put_external("s3://shared/once/readme.txt", b"no picture")
    with shop.http("write", "coins") as http:
        for address in ("s3://secret/in/", f"s3://{objects.bucket}/", "s3://shared/../x/"):
            refused = http.post("/v1/archives/coins/ingest", json={"address": address})
            assert refused.status_code == 400 and "RAGLLAVA_API_BUCKETS" in refused.json()["error"]["message"]
        missing = http.post("/v1/archives/coins/ingest", json={"address": "s3://shared/nothing/"})
        assert missing.status_code == 400 and "no pictures below" in missing.json()["error"]["message"]
        body, key = {"address": "s3://shared/once/", "name": "once"}, {"idempotency-key": "once"}
        made = http.post("/v1/archives/coins/ingest", json=body, headers=key)
        assert made.status_code == 202 and made.json()["files"] == 2 and made.json()["captions"] == 1
        assert http.post("/v1/archives/coins/ingest", json=body, headers=key).json()["job"] == made.json()["job"]
        assert shop.wait_for_job(http, made.json()["job"])["counts"] == {"stored": 2}
        rows = http.get("/v1/archives/coins/pictures", params={"limit": 1_000}).json()["data"]
        captions = {row["source"]: row["caption"] for row in rows}
        assert captions["2019/boat.png"] == "the old boat" and captions["quay.png"] is None
        assert http.get("/v1/archives/coins/bindings").json()["data"] == []


def test_only_an_opened_part_of_a_bucket_is_bound(shop: Shop, postcards: Postcards, tmp_path: Path) -> None:
    objects = shop.workshop.resources.objects
    objects.make_bucket("shared")
    objects.put_external("s3://shared/in/sea.png", picture("teal"), "image/png")
    with shop.http("write", "coins") as http:
        for address in ("s3://secret/in/", f"s3://{objects.bucket}/", "s3://shared-too/", "s3://shared/../x/"):
            refused = http.post("/v1/archives/coins/bindings", json={"address": address})
            assert refused.status_code == 400 and "RAGLLAVA_API_BUCKETS" in refused.json()["error"]["message"], address
        made = http.post("/v1/archives/coins/bindings", json={"address": "s3://shared/in/"})
        assert made.status_code == 201, made.text
        assert shop.wait_for_job(http, made.json()["job"])["counts"] == {"done": 1}
        assert [row["address"] for row in http.get("/v1/archives/coins/bindings").json()["data"]] == ["s3://shared/in/"]
        shown: list[dict[str, Any]] = []

        def is_shown() -> bool:
            """The job of the scan may end before that of the pictures."""
            rows = http.get("/v1/archives/coins/pictures").json()["data"]
            shown[:] = [row for row in rows if row["source"] == "sea.png"]
            return bool(shown)

        wait_for("the picture", is_shown, 60)
        [row] = shown
        where = f"/v1/archives/coins/pictures/{row['image_id']}"
        refused = http.patch(where, json={"caption": "the sea", "expected": None})
        assert refused.status_code == 409 and "s3://shared/in/sea.png" in refused.json()["error"]["message"]
        gone = http.delete("/v1/archives/coins/bindings", params={"address": "s3://shared/in/"})
        assert http.patch(where, json={"caption": "the sea", "expected": None}).json()["caption"] == "the sea"
        assert gone.status_code == 200 and http.get("/v1/archives/coins/bindings").json()["data"] == []


def test_duplicates_are_other_names_other_archives_and_pictures_that_look_the_same(
    shop: Shop, postcards: Postcards
) -> None:
    card = next(iter(sorted(postcards.written.pictures.glob("*"))))
    copy = io.BytesIO()
    with Image.open(card) as opened:
        opened.convert("RGB").save(copy, "JPEG", quality=80)
    with shop.http("write") as http:
        http.post("/v1/archives", json={"name": "copies"}).raise_for_status()
        files = [("first.png", card.read_bytes()), ("again.png", card.read_bytes()), ("small.jpg", copy.getvalue())]
        job = upload(http, "copies", *files, ("other.png", picture("red"))).json()["job"]
        shop.wait_for_job(http, job)
        rows = {row["source"]: row for row in http.get("/v1/archives/copies/pictures").json()["data"]}
    own = next(row for name, row in rows.items() if name in ("first.png", "again.png"))
    with Client(shop.workshop.settings, for_tenants=True) as tenants, acting(Scope(None, "a test")):
        duplicates = tenants.pictures.duplicates("copies", own["image_id"])
    assert {own["source"], *duplicates.names} == {"first.png", "again.png"}
    assert [image.source for image in duplicates.alike] == ["small.jpg"]
    assert [(copy.archive, copy.source) for copy in duplicates.elsewhere] == [("postcards", card.name)]
