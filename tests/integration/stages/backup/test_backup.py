"""Backups on real services: what comes back is what was there; what is damaged, half or too new is refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import migrations
from ragllava.client import Client
from ragllava.errors import Conflict, NotFound, ObjectCorrupt, ObjectMissing, SchemaMismatch, UsageError
from ragllava.records import TaskName
from ragllava.settings import Settings
from ragllava.stages.backup.backup import BackupMaker
from ragllava.stages.backup.manifest import (
    MANIFESTS,
    Piece,
    file_of,
    read_manifest,
    read_pieces,
    saved_content,
    saved_objects,
    write_manifest,
)
from ragllava.stages.backup.vaults import FolderVault, open_vault
from ragllava.stages.erasing.remove import Remover
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.backup.snapshot import LEFT_OUT, open_snapshot
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import REVISION, metadata
from tests.conftest import own_settings
from tests.integration.conftest import Postcards
from tests.support.postcard_gallery import cards
from tests.support.run_command import Run
from tests.support.workshop import Workshop, open_workshop

EARLIER = "0015"  # a revision with fewer columns and tables


@pytest.fixture(scope="module")
def shop(services: Settings, template_database: str, models: Any, postcards: Postcards) -> Iterator[Workshop]:
    """Twelve pictures, an answered job with result files, and one that a worker has begun; tests only read it."""
    with own_settings(services, template_database) as own, open_workshop(own, models) as workshop:
        shop = workshop.with_settings(files_per_shard=6, questions_per_shard=2)
        shop.ingest_files(cards(postcards, 0, 12))
        texts = [question.text for question in postcards.archive.questions[:4]]
        shop.ask(texts)
        publish_missing_results(shop.engine, shop.resources.objects)
        shop.submit(texts)
        assert shop.dispatch() and shop.claim_next(lease_s=600.0)
        in_transaction(shop.engine, lambda connection: connection.execute(_WEBHOOK))
        yield shop


_WEBHOOK = text(
    "INSERT INTO webhooks (owner, url, kinds, secret) VALUES ('ada', 'https://a.example', '{answer}', 'whsec_x')"
)


@pytest.fixture
def empty(services: Settings, template_database: str) -> Iterator[Settings]:
    with own_settings(services, template_database) as own:
        yield own


def make(shop: Workshop, folder: Path, **options: Any) -> Any:
    return BackupMaker(shop.engine, shop.resources.objects, FolderVault(folder)).make(**options)


def restore(settings: Settings, folder: Path, name: str | None = None) -> Any:
    with Client(settings) as client:
        return client.backups.restore(str(folder), name)


_KEY = "INSERT INTO api_keys (prefix, sha256, name, role) VALUES ('p', 's', 'n', 'read')"


def execute(settings: Settings, statement: str) -> None:
    """As the owner of the tables."""
    engine = make_engine(settings.require_database_owner(), name="test")
    try:
        in_transaction(engine, lambda connection: connection.execute(text(statement)))
    finally:
        engine.dispose()


def all_rows(settings: Settings) -> dict[str, list[bytes]]:
    """The rows of every table that a backup has, as COPY writes them."""
    engine = make_engine(settings.require_database(), name="test rows")
    try:
        with open_snapshot(engine) as snapshot:
            return {f"{part.table} {part.index_id}": sorted(snapshot.rows(part)) for part in snapshot.parts()}
    finally:
        engine.dispose()


def all_objects(settings: Settings) -> dict[str, bytes]:
    objects = ObjectStore(settings)
    return {info.key: objects.get(info.key) for info in objects.list_objects("")}


def test_every_table_is_saved_or_left_out_on_purpose(shop: Workshop) -> None:
    with open_snapshot(shop.engine) as snapshot:
        saved = {part.table for part in snapshot.parts()}
    assert saved | LEFT_OUT == set(metadata.tables) and not saved & LEFT_OUT


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
        assert other.submit(["Is it red?"]).job_id == 4, "ids go on where they were"


def test_a_slow_vault_holds_no_lock_on_tables(shop: Workshop, tmp_path: Path) -> None:
    alone = threading.Lock()

    class Vault(FolderVault):
        def put(self, name: str, data: bytes | Path) -> None:
            with alone, shop.engine.begin() as connection:
                connection.execute(text("LOCK TABLE embeddings IN ACCESS EXCLUSIVE MODE NOWAIT"))
            super().put(name, data)

    assert BackupMaker(shop.engine, shop.resources.objects, Vault(tmp_path)).make().pictures == 12


def test_a_second_backup_copies_only_what_is_new_and_an_interrupted_one_is_no_backup(
    shop: Workshop, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        BackupMaker(shop.engine, shop.resources.objects, FolderVault(tmp_path), check=stop).make()
    with Client(shop.settings) as client, pytest.raises(NotFound, match="no complete backup"):
        client.backups.verify(str(tmp_path))
    first = make(shop, tmp_path)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    second = make(shop, tmp_path)
    assert first.copied < first.pictures + first.files and (second.copied, second.copied_bytes) == (0, 0)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - files
    assert {path.parent.name for path in new} <= {"backups"}, "tables that did not change are not written again"


def test_older_backups_are_removed_with_what_only_they_need(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(shop, tmp_path)
    vault = FolderVault(tmp_path)
    write_manifest(vault, replace(read_manifest(vault), name="2020-01-01T00-00-00Z"))
    vault.put(f"objects/ab/{'ab' * 32}", b"of nobody")
    file = tmp_path / MANIFESTS / f"{make(shop, tmp_path).name}.json"
    whole = file.read_text()
    file.write_text("{}")
    careful = make(shop, tmp_path, keep=2)
    assert careful.removed == () and "no older backup was removed" in careful.notes[0]
    file.write_text(whole)
    ahead = "2999-01-01T00-00-00.999Z"
    write_manifest(vault, replace(read_manifest(vault), name=ahead))
    made = make(shop, tmp_path, keep=1)
    assert (
        made.name == "2999-01-01T00-00-01.000Z"
        and {"2020-01-01T00-00-00Z", ahead} < {*made.removed}
        and not (tmp_path / f"objects/ab/{'ab' * 32}").exists()
    )
    with Client(shop.settings) as client:
        assert client.backups.list(str(tmp_path)) == [made.name]
        assert client.backups.verify(str(tmp_path)).problems == ()


def test_the_next_backup_mends_what_was_lost_or_damaged(shop: Workshop, tmp_path: Path) -> None:
    made = make(shop, tmp_path)
    vault = FolderVault(tmp_path)
    manifest = read_manifest(vault)
    blobs = next(table.pieces[0].sha256 for table in manifest.tables if table.part.table == "blobs")
    content, other = next(saved_content(vault, manifest)).sha256, next(saved_objects(vault, manifest)).sha256
    (tmp_path / file_of(blobs)).unlink()
    (tmp_path / file_of(other)).unlink()
    left = (tmp_path / file_of(other)).with_name(".x.0.part")
    left.parent.mkdir(exist_ok=True)
    left.touch()
    data = (tmp_path / file_of(content)).read_bytes()
    (tmp_path / file_of(content)).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # its size stays
    make(shop, tmp_path)
    assert not left.exists() and tmp_path.joinpath("objects").stat().st_mode & 0o777 == 0o700
    with Client(shop.settings) as client:
        [problem] = client.backups.verify(str(tmp_path), made.name).problems
        assert content in problem and "set aside" not in problem and (tmp_path / "damaged" / content).exists()
        make(shop, tmp_path)
        assert client.backups.verify(str(tmp_path), made.name).problems == ()
    for piece in manifest.objects:
        (tmp_path / file_of(piece.sha256)).unlink()
    make(shop, tmp_path)
    with Client(shop.settings) as client:
        assert client.backups.verify(str(tmp_path)).problems == ()


@pytest.mark.parametrize("damage", ["remove", "change"])
def test_verify_finds_every_damaged_file(shop: Workshop, tmp_path: Path, damage: str) -> None:
    make(shop, tmp_path)
    with Client(shop.settings) as client:
        whole = client.backups.verify(str(tmp_path))
        assert whole.problems == () and whole.pictures == 12
        pieces = {piece.sha256 for piece in read_manifest(FolderVault(tmp_path)).pieces()}
        for path in sorted((tmp_path / "objects").rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                if damage == "remove":
                    path.unlink()
                else:
                    path.write_bytes(data + b"x")
                assert len(client.backups.verify(str(tmp_path)).problems) == 1, (path, path.name in pieces)
                path.write_bytes(data)
        [manifest] = (tmp_path / MANIFESTS).iterdir()
        manifest.write_text(manifest.read_text().replace('"content": 12', '"content": 11'))
        with pytest.raises(ObjectCorrupt, match="is damaged"):
            client.backups.verify(str(tmp_path))


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
    execute(empty, _KEY)
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
            execute(empty, _KEY)

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
    workshop.ingest_files(cards(postcards, 4, 6), "other")
    execute(workshop.settings, _KEY)
    execute(workshop.settings, _KEY.replace("'p', 's'", "'valid', 't'"))
    made = make(workshop, tmp_path)
    execute(workshop.settings, "UPDATE api_keys SET revoked_at = now() WHERE prefix = 'p'")
    remover = Remover(workshop.engine, workshop.settings, workshop.resources.objects, "test")
    [first, *others] = workshop.images().values()
    remover.pictures("postcards", [str(first.id)])
    remover.archive("other")
    vault = FolderVault(tmp_path)
    later = make(workshop, tmp_path)
    newest = replace(read_manifest(vault), name=f"{later.name}~", ids={"images": (Piece("0" * 64, 1, 1),)})
    write_manifest(vault, newest)
    restored = restore(empty, tmp_path, made.name)
    assert restored.erased == {"archives": 1, "images": 1, "keys": 1}
    [note] = restored.notes
    assert f"the backup {newest.name} does not say what was erased" in note
    with Client(empty) as client:
        assert [key.prefix for key in client.access.list_keys() if key.revoked_at is None] == ["valid"]
        assert client.archives.names() == ["postcards"]
        assert [each.problem for each in client.system.inspect() if each.problem] == []
    assert sorted(all_rows(empty)["images None"])[0].startswith(str(others[0].id).encode())
    assert len([key for key in all_objects(empty) if key.startswith("sha256/")]) == 3
    assert read_manifest(vault, made.name).content == 6, "the backup itself still holds it"


def test_an_object_that_is_erased_while_it_is_copied_is_not_in_the_backup(
    workshop: Workshop, postcards: Postcards, tmp_path: Path
) -> None:
    workshop.ingest_files(cards(postcards, 0, 3))
    objects = workshop.resources.objects
    remover = Remover(workshop.engine, workshop.settings, objects, "test")
    victims = [str(image.id) for image in workshop.images().values()][:2]

    class Erasing:
        """Before the objects of a round are copied, somebody erases a picture."""

        def __getattr__(self, name: str) -> Any:
            return getattr(objects, name)

        def list_objects(self, prefix: str) -> Any:
            if victims and prefix == "jobs/":
                remover.pictures("postcards", [victims.pop()])
            return objects.list_objects(prefix)

        def get_content(self, sha256: str) -> bytes:
            if victims:
                remover.pictures("postcards", [victims.pop()])
            return objects.get_content(sha256)

    made = BackupMaker(workshop.engine, Erasing(), FolderVault(tmp_path)).make()  # type: ignore[arg-type]
    assert victims == [] and (made.pictures, made.absent) == (1, ())
    [lost] = workshop.images().values()
    objects.delete_content(lost.sha256)
    shutil.rmtree(tmp_path)
    damaged = make(workshop, tmp_path)
    assert damaged.absent == (lost.sha256,), "a store that lost objects is saved all the same"


def test_a_bucket_holds_backups_and_a_schedule_makes_them(shop: Workshop, empty: Settings) -> None:
    bucket = f"{shop.settings.s3_bucket}-backup"
    address = f"s3://{bucket}/daily"
    with pytest.raises(ObjectMissing, match="there is no bucket"), Client(shop.settings) as client:
        client.backups.make(address)
    shop.resources.objects.make_bucket(bucket)
    own = shop.with_settings(backup_to=address, backup_keep=1)
    job_id = in_transaction(own.engine, submit_task, own.settings, TaskName.BACKUP, None, {})
    own.dispatch()
    with own.engine.begin() as connection:
        [shard_id] = connection.scalars(text("SELECT id FROM shards WHERE job_id = :id"), {"id": job_id}).all()
    assert own.run_shard(shard_id) and own.job(job_id).state == "completed"
    with Client(own.settings) as client:
        [name] = client.backups.list()
        assert client.backups.verify().problems == ()
    with Client(empty.model_copy(update={"backup_to": address})) as client:
        assert client.backups.restore(name=name).pictures == 12


def test_another_store_is_reached_at_its_own_address(shop: Workshop) -> None:
    own = shop.settings
    bucket = f"{own.s3_bucket}-elsewhere"
    shop.resources.objects.make_bucket(bucket)
    other = {
        "s3_socket": "/nowhere/s3.sock",
        "backup_s3_endpoint": own.s3_endpoint,
        "backup_s3_access_key": own.s3_access_key,
        "backup_s3_secret_key": own.s3_secret_key,
        "backup_s3_secure": own.s3_secure,
    }
    vault = open_vault(f"s3://{bucket}/daily", own.model_copy(update=other))
    vault.put("objects/a", b"saved")
    assert list(vault.sizes("objects/")) == [("objects/a", 5)]


def test_the_commands_say_what_they_did(run: Run, tmp_path: Path) -> None:
    code, _, err = run("backup")
    assert (code, err) == (1, "ragllava: name a folder or s3://bucket/prefix, or set RAGLLAVA_BACKUP_TO\n")
    code, out, err = run("backup", "b")
    assert (code, err) == (0, "") and ": 0 rows, 0 pictures" in out
    [name] = run("backup", "b", "--list")[1].splitlines()
    assert run("backup", "b", "--at", name)[0] == 2
    code, out, _ = run("backup", "b", "--verify", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    code, _, err = run("restore", "b", "--at", "x")
    assert code == 1 and f"has no backup 'x'; it has {name}" in err
    code, out, err = run("restore", "b")
    assert code == 0 and out.startswith(f"restored the backup {name}: 0 rows"), err
    (tmp_path / "b" / MANIFESTS / f"{name}.json").write_text("{}")
    code, _, err = run("backup", "b", "--verify")
    assert code == 1 and err.startswith(f"ragllava: the manifest of the backup {name}")


def test_a_full_disk_is_said_in_a_sentence(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("in the way")
    with Client(shop.settings) as client, pytest.raises(UsageError, match=r"cannot write to .*free some room"):
        client.backups.make(str(tmp_path))
    assert json.dumps(client.backups.list(str(tmp_path))) == "[]"
