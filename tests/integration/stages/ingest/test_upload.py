"""Files that the ingest workers do not see: uploaded by the client, and then ingested as any others."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ragllava.client import Client
from ragllava.errors import RejectionClass
from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stages.ingest import upload
from ragllava.stages.ingest.reading import OpenObject, ReadFile, read_sources
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.upload import upload_files
from ragllava.stores.jobs import workers
from tests.integration.conftest import Postcards
from tests.support.workshop import ARCHIVE, Workshop


def packed_and_loose(postcards: Postcards, folder: Path) -> Path:
    """Ten pictures: loose, in a zip and in a tar.gz; beside them a damaged one and one that is a link to nowhere."""
    pictures = sorted(postcards.written.pictures.glob("*.*"))[:10]
    folder.mkdir()
    for picture in pictures[:4]:
        shutil.copy(picture, folder)
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        for picture in pictures[4:7]:
            packed.write(picture, picture.name)
    with tarfile.open(folder / "b.tar.gz", "w:gz") as packed_tar:
        for picture in pictures[7:]:
            packed_tar.add(picture, picture.name)
    (folder / "damaged.jpg").write_bytes(pictures[0].read_bytes()[:200])
    (folder / "dangling.png").symlink_to("nothing")
    return folder


def test_uploaded_files_are_ingested_where_the_paths_are_gone(
    workshop: Workshop, postcards: Postcards, tmp_path: Path
) -> None:
    folder = packed_and_loose(postcards, tmp_path / "pictures")
    listed = list(list_sources([folder]))
    calls: list[tuple[int, int]] = []
    uploaded = upload_files(
        workshop.engine, workshop.resources.objects, listed, lambda done, total: calls.append((done, total))
    )
    shutil.rmtree(folder)
    job = workshop.ingest_files(uploaded)
    assert job.progress.by_status == {"stored": 10, "rejected": 2}
    assert calls[-1] == (11, 11)  # the dangling link was rejected by the listing
    images = workshop.images()
    assert set(images) <= {file.source for file in listed}
    assert "a.zip/" in "".join(images) and "b.tar.gz/" in "".join(images)


def test_no_more_than_a_chunk_is_in_memory(
    workshop: Workshop, postcards: Postcards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is uploaded before the next file is read."""
    monkeypatch.setattr(upload, "_BYTES_AT_ONCE", 1)
    read: list[int] = []
    put: list[str] = []

    def counted(files: Sequence[tuple[int, str]], open_object: OpenObject) -> Iterator[ReadFile]:
        for number, data in read_sources(files, open_object):
            assert len(put) == len(read), "a file was read before the last one was uploaded"
            read.append(number)
            yield number, data

    objects = workshop.resources.objects
    put_content = objects.put_content

    def noted(data: bytes, media_type: str) -> str:
        put.append(put_content(data, media_type))
        return put[-1]

    monkeypatch.setattr(upload, "read_sources", counted)
    monkeypatch.setattr(objects, "put_content", noted)
    files = list(list_sources([postcards.written.pictures]))[:5]
    assert len({file.uri for file in upload_files(workshop.engine, objects, files)}) == 5
    assert len(put) == 5


def uris(engine: Engine, job_id: int) -> set[str]:
    with engine.begin() as connection:
        query = text("SELECT DISTINCT split_part(uri, ':', 1) FROM files WHERE job_id = :job_id")
        return set(connection.scalars(query, {"job_id": job_id}))


@dataclass(frozen=True)
class Case:
    """RAGLLAVA_UPLOAD_FILES, the host of an ingest worker, what the caller asks for, and the scheme of the address."""

    choice: str
    host: str | None
    asked: bool | None
    scheme: str


@pytest.mark.parametrize(
    "case",
    [
        Case("auto", None, None, "file"),
        Case("auto", "here", None, "file"),
        Case("auto", "elsewhere", None, "s3"),
        Case("auto", "elsewhere", False, "file"),
        Case("always", None, None, "s3"),
        Case("never", "elsewhere", None, "file"),
        Case("never", "elsewhere", True, "s3"),
    ],
    ids=str,
)
def test_files_are_uploaded_when_a_worker_runs_elsewhere(
    case: Case, settings: Settings, engine: Engine, postcards: Postcards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    if case.host is not None:
        with engine.begin() as connection:
            workers.register(connection, f"ingest@{case.host}", ["ingest"], 1)
    picture = sorted(postcards.written.pictures.glob("*.*"))[0]
    with Client(settings.model_copy(update={"upload_files": case.choice})) as client:
        queued = client.archives.ingest([picture], ARCHIVE, upload=case.asked)
    assert uris(engine, queued.job_id) == {case.scheme}


def test_a_file_that_cannot_be_read_is_rejected_with_the_reason(workshop: Workshop, tmp_path: Path) -> None:
    gone = SourceFile("gone.png", f"file://{tmp_path}/gone.png")
    [file] = upload_files(workshop.engine, workshop.resources.objects, [gone])
    assert file.rejected == (RejectionClass.UNREADABLE, "it disappeared since it was listed")
