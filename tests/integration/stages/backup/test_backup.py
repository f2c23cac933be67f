"""Backups on real services: all that was there is saved, what is damaged is found and mended."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ragllava.client import Client
from ragllava.errors import NotFound, ObjectCorrupt, ObjectMissing, UsageError
from ragllava.records import TaskName
from ragllava.settings import Settings
from ragllava.stages.backup.backup import BackupMaker
from ragllava.stages.backup.manifest import (
    MANIFESTS,
    file_of,
    read_manifest,
    saved_content,
    saved_objects,
    write_manifest,
)
from ragllava.stages.backup.vaults import FolderVault, open_vault
from ragllava.stages.erasing.remove import Remover
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stores.backup.snapshot import LEFT_OUT, open_snapshot
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import metadata
from tests.integration.conftest import Postcards
from tests.support.postcard_gallery import cards
from tests.support.run_command import Run
from tests.support.saved_systems import make
from tests.support.workshop import Workshop


def test_every_table_is_saved_or_left_out_on_purpose(shop: Workshop) -> None:
    with open_snapshot(shop.engine) as snapshot:
        saved = {part.table for part in snapshot.parts()}
    assert saved | LEFT_OUT == set(metadata.tables) and not saved & LEFT_OUT


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
    nobody = "ab" * 32
    for name in (f"objects/ab/{nobody}", f"damaged/{nobody}"):
        vault.put(name, b"of nobody")
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
        and not list(tmp_path.rglob(nobody))
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
