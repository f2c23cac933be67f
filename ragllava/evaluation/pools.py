"""The pool of an evaluation set as an archive: its pictures go through the ingest stage like anybody's.

The archive's name follows from what is in it and from the retriever, so a second evaluation of the same set finds
everything there, and another set or another retriever never mixes with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection, Engine

from ragllava.errors import ImageRejected, JobRefused
from ragllava.evaluation.datasets.records import EvaluationImage, EvaluationQuestion, EvaluationSet, FilePicture
from ragllava.jobs.inline import run_job
from ragllava.records import StoredImage
from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.ingest.uris import file_uri
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, descriptions
from ragllava.stores.database import equals_any, in_transaction
from ragllava.stores.schema import images

Progress = Callable[[str, int, int], None]  # what is done, how many are, of how many


@dataclass(frozen=True)
class Workbench:
    """What an evaluation works with in this process. `progress` hears (what, done, total).

    `untuned` are the models of another profile, whose reranker gets a row of its own; None: the champion's base
    without its adapter, if it has one.
    """

    engine: Engine
    settings: Settings
    resources: Resources
    progress: Progress = lambda what, done, total: None
    untuned: Resources | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """An ingested pool. `images` holds what the archive has, by the set's image id.

    Two ids with the same bytes are one image, which is known by the `source` of the first. A TIFF of several pages is
    its first page; the others are further images of the archive. `left_out` are the ids that the archive has not:
    unreadable pictures.
    """

    archive_id: int
    archive_name: str
    images: dict[str, StoredImage]
    left_out: tuple[str, ...]

    def known_here(self, question: EvaluationQuestion) -> EvaluationQuestion:
        """The question with its labelled images under the sources that candidates have in this archive."""
        sources = (self.images[name].source if name in self.images else name for name in question.relevant)
        return replace(question, relevant=tuple(dict.fromkeys(sources)))


def ingest_pool(dataset: EvaluationSet, bench: Workbench) -> Pool:
    """Ingest the pictures of a set that the archive does not hold yet.

    Drawn or packed pictures are written below `<home>/eval`. Raises JobRefused when the ingest as a whole fails.
    """
    name = archive_name(dataset, bench.resources.models.retriever.version)
    hashes: dict[str, str] = {}  # sha256 by image id
    offered: dict[str, SourceFile] = {}  # by sha256
    for file, image, sha256 in _written(dataset, bench.settings.home / "eval" / name, bench.progress):
        hashes[image.image_id] = sha256
        offered.setdefault(sha256, SourceFile(image.image_id, file_uri(file), image.caption))
    # One shard: it is worked off here, not spread over workers.
    settings = bench.settings.model_copy(update={"files_per_shard": len(offered)})
    bench.progress("ingest", 0, len(offered))
    files = list(offered.values())
    job_id = in_transaction(bench.engine, submit_files, settings, archive_name=name, files=files)
    job = run_job(job_id, settings, bench.engine, bench.resources)
    bench.progress("ingest", len(offered), len(offered))
    archive_id = in_transaction(bench.engine, lambda c: archive.get_archive(c, name).archive_id)
    stored = in_transaction(bench.engine, archive.existing_images, archive_id, list(offered))
    stored |= in_transaction(bench.engine, _first_pages, archive_id, list(offered))
    if not stored:
        raise JobRefused(f"no picture of {dataset.name}, split {dataset.split}, could be ingested: {job.error}")
    known = {
        image_id: StoredImage(kept.image_id, kept.sha256, kept.source, kept.caption)
        for image_id, sha256 in hashes.items()
        if (kept := stored.get(sha256)) is not None
    }
    return Pool(archive_id, name, known, tuple(i.image_id for i in dataset.images if i.image_id not in known))


def _first_pages(
    connection: Connection, archive_id: int, hashes: Iterable[str]
) -> dict[str, descriptions.ArchiveImage]:
    """Of those files that are documents of several pages, the image of the first page, by the file's sha256."""
    document = images.c.embedded["document"].astext
    is_first = images.c.embedded["page"].astext == "1"
    pages = archive.find_images(connection, archive_id, equals_any(document, hashes) & is_first)
    return {str((page.embedded or {})["document"]): page for page in pages}


def archive_name(dataset: EvaluationSet, retriever: str) -> str:
    """`eval-<set>-<split>-<digest>`, the digest over the ids and captions of the pool and the retriever's version."""
    digest = hashlib.sha256(retriever.encode())
    for image in dataset.images:
        digest.update(json.dumps([image.image_id, image.caption]).encode())
    return f"eval-{dataset.name}-{dataset.split}-{digest.hexdigest()[:10]}".lower()


def _written(dataset: EvaluationSet, folder: Path, progress: Progress) -> Iterator[tuple[Path, EvaluationImage, str]]:
    """Each picture's file with the hash of its bytes; a picture without its own file is written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(dataset.images, start=1):
        picture = image.picture
        try:
            data = picture.read()
            if isinstance(picture, FilePicture):
                path = picture.path.absolute()
            else:
                path = folder / f"{number:08d}"
                path.write_bytes(data)
        except ImageRejected:
            continue  # damaged in the data set itself; it ends in Pool.left_out
        yield path, image, hashlib.sha256(data).hexdigest()
        progress("read pictures", number, len(dataset.images))
