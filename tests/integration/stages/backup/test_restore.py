"""Restoring on real services: what comes back is what was there; what is damaged, half or too new is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import migrations
from ragllava.client import Client
from ragllava.errors import Conflict, NotFound, ObjectMissing, SchemaMismatch, UsageError
from ragllava.settings import Settings
from ragllava.stages.backup.manifest import (
    Piece,
    read_manifest,
    read_pieces,
    write_manifest,
)
from ragllava.stages.backup.vaults import FolderVault
from ragllava.stages.erasing.remove import Remover
from ragllava.stages.ingest.submit import submit_files
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import REVISION
from tests.integration.conftest import Postcards
from tests.support.postcard_gallery import cards
from tests.support.saved_systems import KEY, all_objects, all_rows, execute, make, restore
from tests.support.workshop import Workshop, open_workshop

EARLIER = "0015"  # a revision with fewer columns and tables


def test_what_is_restored_is_what_was_there_and_open_jobs_continue(
    shop: Workshop, empty: Settings, models: Any, tmp_path: Path
) -> None:
    made = make(shop, tmp_path)
    assert (made.pictures, made.absent) == (12, ()) and made.files >= 3
    vault = FolderVault(tmp_path)
    saved = b"".join(read_pieces(vault, read_manifest(vault).pieces()))
    assert b"https://a.example" in saved and b"whsec_x" not in saved
    restored = restore(empty, tmp_path)
    assert (restored.rows, restored.pictures, restored.files) == (made.rows, made.pictures, made.files)
    assert any("https://a.example has a new secret" in note for note in restored.notes)
    before, after = all_rows(shop.settings), all_rows(empty)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"shards None"}, "their leases are over"
    assert all_objects(empty) == all_objects(shop.settings)
    with Client(empty) as client:
        [secret] = client.jobs._do(lambda connection: connection.scalars(text("SELECT secret FROM webhooks")).all())
        assert secret.startswith("whsec_") and secret != "whsec_x"
        problems = [each.problem for each in client.system.inspect() if each.problem and each.name != "waiting work"]
        assert problems == []
        client.backups.make(str(tmp_path))
    with pytest.raises(Conflict, match="is of another database"):
        make(shop, tmp_path)
    with open_workshop(empty, models) as other:
        other.run()
        first, second = (other.rows(job_id) for job_id in (2, 3))
        assert [row.answer for row in first] == [row.answer for row in shop.rows(2)]
        assert [(row.status, row.answer) for row in second] == [(row.status, row.answer) for row in first]
        assert other.submit(["Is it red?"]).job_id == len(before["jobs None"]) + 1, "ids go on where they were"


def test_what_cannot_be_restored_is_refused_in_a_sentence(shop: Workshop, empty: Settings, tmp_path: Path) -> None:
    made = make(shop, tmp_path)
    vault = FolderVault(tmp_path)
    shop.live_worker(queues=("query", "ingest"))
    with pytest.raises(Conflict, match="workers of this system run"):
        restore(shop.settings, tmp_path)
    newer = replace(read_manifest(vault), name="2999-01-01T00-00-00Z", revision="9999")
    write_manifest(vault, newer)
    with pytest.raises(SchemaMismatch, match="tables of revision 9999"):
        restore(empty, tmp_path)
    with pytest.raises(NotFound, match="has no backup 'x'"):
        restore(empty, tmp_path, "x")
    for address, words in ((f"s3://{empty.s3_bucket}/b", "another bucket"), ("ftp://x/y", "neither a folder")):
        with Client(empty) as client, pytest.raises(UsageError, match=words):
            client.backups.restore(address)
    ObjectStore(empty).put("jobs/9/results.jsonl", b"")
    with pytest.raises(Conflict, match=r"bucket .* is not empty"):
        restore(empty, tmp_path, made.name)
    ObjectStore(empty).delete("jobs/9/results.jsonl")
    engine = make_engine(empty.require_database(), name="test")
    in_transaction(engine, lambda connection: connection.execute(text("INSERT INTO archives (name) VALUES ('a')")))
    engine.dispose()
    with pytest.raises(Conflict, match="its table archives has rows"):
        restore(empty, tmp_path, made.name)


def test_an_interrupted_restore_continues(shop: Workshop, empty: Settings, tmp_path: Path) -> None:
    made = make(shop, tmp_path)
    content = sorted((tmp_path / "objects").rglob("*"))
    hidden = next(path for path in content if path.is_file() and path.read_bytes()[:4] == b"\x89PNG")
    hidden.rename(tmp_path / "hidden")
    with pytest.raises(ObjectMissing):
        restore(empty, tmp_path)
    assert all_rows(empty)["images None"] == [], "objects come before rows"
    (tmp_path / "hidden").rename(hidden)
    other = replace(read_manifest(FolderVault(tmp_path)), name="2020-01-01T00-00-00Z")
    write_manifest(FolderVault(tmp_path), other)
    with pytest.raises(Conflict, match="was interrupted here"):
        restore(empty, tmp_path, other.name)
    execute(empty, KEY)
    with pytest.raises(Conflict, match="its table api_keys has rows"):
        restore(empty, tmp_path, made.name)
    execute(empty, "DELETE FROM api_keys")
    execute(empty, "INSERT INTO notices (event, subject, facts) VALUES ('disk_low', 'h', '{}')")
    assert restore(empty, tmp_path, made.name).pictures == 12
    assert all_objects(empty) == all_objects(shop.settings)
    assert all_rows(empty)["images None"] == all_rows(shop.settings)["images None"] != []


def test_rows_that_come_while_objects_are_copied_stay(shop: Workshop, empty: Settings, tmp_path: Path) -> None:
    make(shop, tmp_path)
    refused: list[str] = []

    def show(what: str, done: int, total: int) -> None:
        if what == "pictures" and done == total and not refused:
            with pytest.raises(Conflict, match="another restore into this system runs") as error:
                restore(empty, tmp_path)
            refused.append(str(error.value))
            execute(empty, KEY)

    with Client(empty) as client, pytest.raises(Conflict, match="its table api_keys has rows"):
        client.backups.restore(str(tmp_path), on_progress=show)
    assert refused and len(all_rows(empty)["api_keys None"]) == 1


def test_tables_of_an_earlier_version_are_migrated(
    workshop: Workshop, empty: Settings, postcards: Postcards, tmp_path: Path
) -> None:
    workshop.ingest_files(cards(postcards, 0, 3))
    before = all_rows(workshop.settings)
    migrations.downgrade(workshop.settings.require_database_owner(), EARLIER)
    make(workshop, tmp_path)
    assert read_manifest(FolderVault(tmp_path)).revision == EARLIER
    restore(empty, tmp_path)
    url = empty.require_database_owner()
    assert migrations.current(url) == REVISION and migrations.differences(url) == []
    assert all_rows(empty)["images None"] == before["images None"] != []


def test_what_was_erased_after_a_backup_is_erased_again(
    workshop: Workshop, empty: Settings, postcards: Postcards, tmp_path: Path
) -> None:
    workshop.ingest_files(cards(postcards, 0, 4))
    execute(workshop.settings, "INSERT INTO archives (name) VALUES ('busy')")
    workshop.ingest_files(cards(postcards, 4, 6), "other")
    files = cards(postcards, 6, 7)
    job_id = in_transaction(workshop.engine, submit_files, workshop.settings, archive_name="busy", files=files)
    execute(workshop.settings, KEY)
    execute(workshop.settings, KEY.replace("'p', 's'", "'valid', 't'"))
    made = make(workshop, tmp_path)
    execute(workshop.settings, "UPDATE api_keys SET revoked_at = now() WHERE prefix = 'p'")
    remover = Remover(workshop.engine, workshop.settings, workshop.resources.objects, "test")
    [first, *others] = workshop.images().values()
    remover.pictures("postcards", [str(first.id)])
    with Client(workshop.settings) as client:
        client.jobs.cancel(job_id)
    workshop.run()
    for name in ("busy", "other"):
        remover.archive(name)
    vault = FolderVault(tmp_path)
    later = make(workshop, tmp_path)
    newest = replace(read_manifest(vault), name=f"{later.name}~", ids={"images": (Piece("0" * 64, 1, 1),)})
    write_manifest(vault, newest)
    restored = restore(empty, tmp_path, made.name)
    assert restored.erased == {"archives": 1, "images": 1, "keys": 1}
    passed_over, *refused = restored.notes
    assert f"the backup {newest.name} does not say what was erased" in passed_over
    assert ["archives 2 " in refused[0], f"jobs {job_id} " in refused[1]] == [True, True], "the others go all the same"
    with Client(empty) as client:
        assert [key.prefix for key in client.access.list_keys() if key.revoked_at is None] == ["valid"]
        assert client.archives.names() == ["busy", "postcards"]
        problems = [each.problem for each in client.system.inspect() if each.problem and each.name != "waiting work"]
        assert problems == []
    assert sorted(all_rows(empty)["images None"])[0].startswith(str(others[0].id).encode())
    assert len([key for key in all_objects(empty) if key.startswith("sha256/")]) == 3
    assert read_manifest(vault, made.name).content == 6, "the backup itself still holds it"
