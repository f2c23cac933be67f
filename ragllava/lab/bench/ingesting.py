"""Ingest jobs, from the submit to the last commit, compared with embedding alone and with clip-retrieval.

Two retrievers: the profile's own on postcards, and a ViT-B/32 with random weights on photographs. The shipped mini
retriever needs about as much time for a picture as the storage of its file, so fixed costs weigh more there than with
any model that people would use on an archive.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Connection

from ragllava.imaging.decode import decode
from ragllava.lab.bench.clip_retrieval import ADVICE, run_clip_retrieval
from ragllava.lab.bench.jobs import wait
from ragllava.lab.bench.photographs import CAMERAS, SMALL, draw_photographs, marked
from ragllava.lab.bench.processes import Spent, spend
from ragllava.lab.bench.rows import BenchRow, Wanted
from ragllava.lab.bench.shapes import CLIP_SHAPE, write_random_clip
from ragllava.lab.bench.workload import Workload
from ragllava.models.profiles import RetrieverSource
from ragllava.stages.ingest.embedding import DECODE_SCALE
from ragllava.stores.archives import archive, indexes, vector_search, vectors
from ragllava.stores.archives.vectors import Vectors
from ragllava.stores.database import in_transaction, read_at_once

if TYPE_CHECKING:
    from ragllava.client import Client
    from ragllava.models.retriever import Retriever

_ROUNDS = 2
_MOST_PHOTOGRAPHS = 128
_WARM_UP = 8  # pictures
_SHARE_ON_CPU, _SHARE_ON_GPU = 0.85, 0.70
_TIMES_CLIP_RETRIEVAL = 1.5
_CLIP_RETRIEVAL_NOTE = "by its own statistics, without its start; it stores vectors in a file, and no pictures"


@dataclass(frozen=True)
class _Case:
    """Pictures and the retriever that embeds them; `source` None: the profile's own."""

    name: str
    files: Sequence[bytes]
    suffix: str
    retriever: Retriever
    source: RetrieverSource | None = None


@dataclass(frozen=True)
class _Round:
    """The cost of a job and of embedding alone, and the lowest cosine of a stored vector to the one that embedding
    alone gives; `clip_retrieval` is (seconds, lowest cosine)."""

    job: Spent
    embedding: Spent
    lowest_cosine: float
    clip_retrieval: tuple[float, float] | None


def ingest_rows(workload: Workload) -> list[BenchRow]:
    """Postcards with the profile's retriever, photographs with a ViT-B/32."""
    home = workload.require_client().settings.home / "bench" / "ingest"
    postcards = [postcard.png() for postcard in workload.archive.postcards]
    profile = workload.models.profile.name
    rows = _rows_of(workload, home, _Case(f"{profile}, postcards", postcards, ".png", workload.models.retriever))
    workload.progress("ingest: drawing photographs")
    source = write_random_clip(home / CLIP_SHAPE)
    retriever = workload.models.retriever_from(source)
    number = min(workload.images, _MOST_PHOTOGRAPHS)
    for name, sizes in (("0.3 megapixels", SMALL), ("2 to 12 megapixels", CAMERAS)):
        files = draw_photographs(workload.seed, number, sizes)
        rows += _rows_of(workload, home, _Case(f"ViT-B/32, {name}", files, ".jpg", retriever, source))
    return rows


def _rows_of(workload: Workload, home: Path, case: _Case) -> list[BenchRow]:
    rounds = _measure(workload, home, case)
    number, best = len(case.files), min(rounds, key=lambda measured: measured.job.seconds)
    embedding = min((measured.embedding for measured in rounds), key=lambda spent: spent.seconds)
    ours = number / best.job.seconds
    figures = {
        "pictures": float(number),
        "mean_kb": sum(map(len, case.files)) / number / 1000,
        "lowest_cosine": min(measured.lowest_cosine for measured in rounds),
        **best.job.figures(number),
        "processor_ms, embedding alone": sum(best.embedding.processor_s.values()) * 1000 / number,
    }
    rows = [
        BenchRow(
            "ingest", f"ingest, {case.name}", "embedding alone, pictures in memory as tensors", "pictures/s",
            ours, number / embedding.seconds,
            Wanted(at_least=_SHARE_ON_GPU if case.retriever.is_on_gpu else _SHARE_ON_CPU), figures,
            "a job through the queue, from its submit to its last commit; its files go into the object store",
        )
    ]  # fmt: skip
    if case.source is not None:
        runs = [measured.clip_retrieval for measured in rounds if measured.clip_retrieval]
        rows.append(
            BenchRow(
                "ingest", f"ingest, {case.name}, beside clip-retrieval", "clip-retrieval inference, the same weights",
                "pictures/s", ours, number / min(runs)[0] if runs else None, Wanted(at_least=_TIMES_CLIP_RETRIEVAL),
                {"lowest_cosine": min(cosine for _, cosine in runs)} if runs else {},
                _CLIP_RETRIEVAL_NOTE if runs else ADVICE,
            )
        )  # fmt: skip
    return rows


def _measure(workload: Workload, home: Path, case: _Case) -> list[_Round]:
    """All ways in turns. The files of each round have different bytes, so that all of them are uploaded each time."""
    client, retriever = workload.require_client(), case.retriever
    batch_size = client.settings.embed_batch
    prepared = [
        retriever.prepare_image(decode(data, shorter_side=DECODE_SCALE * retriever.image_size).picture)
        for data in case.files
    ]
    expected = retriever.embed_pixels(prepared, batch_size)
    _ingest(client, case, _write(home / "warm-up", case, case.files[:_WARM_UP], "warm-up"), "bench-warm-up")
    rounds = []
    for number in range(_ROUNDS):
        workload.progress(f"ingest: {case.name}, round {number + 1} of {_ROUNDS}")
        folder = _write(home / "pictures", case, case.files, f"round {number}")
        job, index_id = _ingest(client, case, folder, f"bench-ingest-{number}")
        embedding = spend(partial(retriever.embed_pixels, prepared, batch_size))
        lowest_cosine, clip_retrieval = _lowest_cosine(client, index_id, expected), None
        if workload.clip_retrieval is not None and case.source is not None:
            model = f"open_clip:{CLIP_SHAPE}/{home / CLIP_SHAPE / 'open_clip_model.safetensors'}"
            output = home / "clip-retrieval"
            shutil.rmtree(output, ignore_errors=True)
            seconds, written = run_clip_retrieval(workload.clip_retrieval, folder, model, batch_size, output)
            clip_retrieval = seconds, float(np.einsum("nd,nd->n", written, expected).min())
        rounds.append(_Round(job, embedding, lowest_cosine, clip_retrieval))
    return rounds


def _write(folder: Path, case: _Case, files: Sequence[bytes], mark: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / f"{number:05}{case.suffix}").write_bytes(marked(data, f"{case.name} {mark}"))
    return folder


def _ingest(client: Client, case: _Case, folder: Path, name: str) -> tuple[Spent, int]:
    """The cost of the job, and the id of the index that it fills."""
    archive_name = f"{name}-{case.retriever.dim}-{len(case.files[0])}"
    index_id = in_transaction(client.engine, _create_index, case, archive_name)
    return spend(lambda: wait(client, client.archives.ingest([folder], archive_name).job_id)), index_id


def _create_index(connection: Connection, case: _Case, archive_name: str) -> int:
    """An archive with an active index of the case's retriever, which the workers then load."""
    archive_id = archive.ensure_archive(connection, archive_name).archive_id
    retriever, spec = case.retriever, asdict(case.source) if case.source else None
    index_id = indexes.create_index(connection, archive_id, retriever.version, retriever.dim, spec)
    indexes.activate(connection, index_id)
    return index_id


def _lowest_cosine(client: Client, index_id: int, expected: Vectors) -> float:
    """The lowest cosine between the expected vector of a picture and its nearest stored one."""
    index = read_at_once(client.engine, vectors.get_index, index_id)
    hits = read_at_once(client.engine, vector_search.search, index, expected, k=1)
    return min(nearest.retrieval_score for nearest, *_ in hits)
