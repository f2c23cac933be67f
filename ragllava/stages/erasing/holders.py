"""What keeps a copy of what is erased, or was derived from it: named, so that people can decide about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine, select, text

from ragllava.errors import ImageRejected, ObjectMissing
from ragllava.settings import Settings
from ragllava.stages.ingest.uris import parse_uri
from ragllava.stores.database import equals_any, in_transaction
from ragllava.stores.maintenance.erasing_jobs import training_folders
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import images

_SHOWN = 20
_CHUNK = 2**20


def copies_of_images(
    engine: Engine, settings: Settings, objects: ObjectStore, archive_id: int, image_ids: Sequence[int], answers: int
) -> list[str]:
    """A sentence for each holder of copies of these images that an erasure leaves."""
    with engine.begin() as connection:
        columns = (images.c.id, images.c.sha256, images.c.source, images.c.uri)
        rows = connection.execute(select(*columns).where(equals_any(images.c.id, image_ids))).all()
    hashes = {row.sha256 for row in rows}
    held = in_transaction(engine, _in_database, archive_id, image_ids)
    held += _snapshots(engine, objects, hashes)
    held += _shortened([f"the file {path} is still there" for path in _files({row.uri for row in rows})], "files")
    held += _logs(settings.home, {row.source for row in rows} | hashes)
    if answers:
        held.append(f"the texts of {answers:,} answers that rest on it stay as they are")
    return held


def copies_of_trainings(engine: Engine, objects: ObjectStore, job_ids: Sequence[int]) -> list[str]:
    """A sentence for each of the trainings, which learned from an archive and keep their snapshots."""
    versions = in_transaction(engine, training_folders)
    held = []
    for job_id in job_ids:
        names = [version for folder, version in versions.items() if folder.startswith(f"training/{job_id}-")]
        learned = f", from which {', '.join(names)} learned" if names else ""
        if names or next(objects.list_objects(f"training/{job_id}-"), None) is not None:
            held.append(f"training job {job_id} keeps its snapshot{learned}")
    return held


def _in_database(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> list[str]:
    values = {"archive_id": archive_id, "ids": list(image_ids)}
    held = [f"the archive {name} holds the same bytes, which stay" for name in connection.scalars(_ARCHIVES, values)]
    asked = connection.execute(_ASKED_WITH, values).all()
    held += [
        f"{row.questions:,} questions of job {row.job_id} were asked with the same bytes, which stay" for row in asked
    ]
    keys = [
        f"the bound bucket holds {address}; it is not ingested again until it changes, and what is recorded of it and "
        "of its captions goes when it is deleted"
        for address in connection.scalars(_OBJECTS, values)
    ]
    held += _shortened(keys, "objects of bound buckets")
    versions = [
        f"image {image_id} is another version of the same name" for image_id in connection.scalars(_NAMES, values)
    ]
    return held + _shortened(versions, "images of the same name")


def _snapshots(engine: Engine, objects: ObjectStore, hashes: set[str]) -> Iterator[str]:
    """Every training whose snapshot names one of the pictures, with the model version that learned from it."""
    versions = in_transaction(engine, training_folders)
    wanted = [sha256.encode() for sha256 in hashes]
    holding: dict[str, None] = {}
    for listed in objects.list_objects("training/"):
        folder, _, name = listed.key.partition("/snapshot/")
        if name and folder not in holding and _contains(objects, listed.key, wanted):
            holding[folder] = None
    for folder in holding:
        learned = f", from which {versions[folder]} learned" if folder in versions else ""
        yield f"the training snapshot {folder}/snapshot{learned}"


def _contains(objects: ObjectStore, key: str, wanted: Sequence[bytes]) -> bool:
    try:
        with objects.open_stream(key) as stream:
            return _any_in(iter(lambda: stream.read(_CHUNK), b""), wanted)
    except ObjectMissing:
        return False


def _any_in(chunks: Iterable[bytes], wanted: Sequence[bytes]) -> bool:
    longest = max(map(len, wanted), default=1)
    end = b""
    for chunk in chunks:
        text_so_far = end + chunk
        if any(each in text_so_far for each in wanted):
            return True
        end = text_so_far[-longest:]
    return False


def _files(uris: Iterable[str]) -> Iterator[str]:
    """The files of these uris that this machine sees."""
    for uri in sorted(uris):
        try:
            location = parse_uri(uri)
        except ImageRejected:
            continue
        if location.scheme != "s3" and Path(location.path).exists():
            yield location.path


def _logs(home: Path, names: set[str]) -> Iterator[str]:
    """Log files of the embedded services and workers that name a picture."""
    wanted = [name.encode() for name in names if len(name) >= 4]
    for path in sorted((home / "logs").glob("**/*")):
        try:
            with path.open("rb") as file:
                if _any_in(iter(lambda: file.read(_CHUNK), b""), wanted):
                    yield f"the log {path} names it"
        except OSError:  # a folder, or a log that was rotated away
            continue


def _shortened(sentences: list[str], noun: str) -> list[str]:
    if len(sentences) <= _SHOWN:
        return sentences
    return [*sentences[:_SHOWN], f"… and {len(sentences) - _SHOWN:,} more {noun}"]


_ARCHIVES = text("""
    SELECT DISTINCT a.name FROM images i JOIN images o ON o.sha256 = i.sha256 AND o.archive_id <> i.archive_id
    JOIN archives a ON a.id = o.archive_id WHERE i.archive_id = :archive_id AND i.id = ANY(:ids) ORDER BY 1
""")

_ASKED_WITH = text("""
    SELECT q.job_id, count(*) AS questions FROM images i JOIN questions q ON q.picture = i.sha256
    WHERE i.archive_id = :archive_id AND i.id = ANY(:ids) GROUP BY q.job_id ORDER BY q.job_id LIMIT 20
""")

_OBJECTS = text("""
    SELECT 's3://' || b.bucket || '/' || o.key FROM bound_objects o JOIN bindings b ON b.id = o.binding_id
    WHERE o.image_id = ANY(:ids) ORDER BY 1
""")

_NAMES = text("""
    SELECT DISTINCT o.id FROM images i JOIN images o
        ON o.archive_id = i.archive_id AND NOT o.id = ANY(:ids) AND (o.source = i.source OR o.uri = i.uri)
    WHERE i.archive_id = :archive_id AND i.id = ANY(:ids) ORDER BY 1
""")
