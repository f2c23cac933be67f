"""Ingest jobs, from the submit to the last commit, against embedding alone and against clip-retrieval.

Two retrievers: the profile's own on postcards, and a ViT-B/32 with random weights on photographs. The shipped mini
retriever takes about as long for a picture as storing its file does, so fixed costs weigh more there than with any
model that people would use on an archive.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from ragllava.imaging.decode import decode
from ragllava.lab.bench.clip_retrieval import ADVICE, run_clip_retrieval
from ragllava.lab.bench.jobs import wait
from ragllava.lab.bench.photographs import CAMERAS, SMALL, draw_photographs, marked
from ragllava.lab.bench.processor import Spent, spend
from ragllava.lab.bench.rows import BenchRow, Wanted
from ragllava.lab.bench.shapes import CLIP_SHAPE, write_random_clip
from ragllava.lab.bench.workload import System, Workload, picture_of, png_of
from ragllava.models.profiles import RetrieverSource
from ragllava.stages.ingest.embedding import DECODE_SCALE
from ragllava.stores.archives import archive, indexes, vectors
from ragllava.stores.database import in_transaction, read_at_once

if TYPE_CHECKING:
    from ragllava.models.retriever import Retriever

_ROUNDS = 2
_MOST_PHOTOGRAPHS = 128
_WARM_UP = 8  # pictures
_SHARE_ON_CPU, _SHARE_ON_GPU = 0.85, 0.70
_TIMES_CLIP_RETRIEVAL = 1.5


@dataclass(frozen=True)
class _Case:
    """Pictures and the retriever that embeds them; `source` None: the profile's own."""

    name: str
    files: Sequence[bytes]
    suffix: str
    retriever: Retriever
    source: RetrieverSource | None = None


@dataclass
class _Times:
    """Seconds of each round, what each program spent on a job, and the lowest cosine of what was stored or written to
    what embedding alone gives."""

    job_s: list[float] = field(default_factory=list)
    embed_s: list[float] = field(default_factory=list)
    clip_retrieval_s: list[float] = field(default_factory=list)
    profiles: list[dict[str, float]] = field(default_factory=list)
    lowest_cosine: float = 1.0
    lowest_cosine_of_clip_retrieval: float = 1.0


def ingest_rows(workload: Workload) -> list[BenchRow]:
    """Postcards with the profile's retriever, photographs with a ViT-B/32."""
    system = workload.require_system()
    home = system.settings.home / "bench" / "ingest"
    postcards = [png_of(picture_of(postcard)) for postcard in workload.archive.postcards]
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
    command = workload.clip_retrieval if case.source is not None else None
    times = _measure(workload, home, case, command)
    number, ours = len(case.files), len(case.files) / min(times.job_s)
    share = _SHARE_ON_GPU if case.retriever.is_on_gpu else _SHARE_ON_CPU
    figures = {
        "pictures": float(number),
        "mean_kb": sum(map(len, case.files)) / number / 1000,
        "lowest_cosine": times.lowest_cosine,
    } | min(zip(times.job_s, times.profiles, strict=True), key=lambda pair: pair[0])[1]
    rows = [
        BenchRow(
            "ingest", f"ingest, {case.name}", "embedding alone, pictures in memory as tensors", "pictures/s",
            ours, number / min(times.embed_s), Wanted(at_least=share), figures,
            "a job through the queue, from its submit to its last commit; its files go into the object store",
        )
    ]  # fmt: skip
    if case.source is not None:
        theirs = number / min(times.clip_retrieval_s) if times.clip_retrieval_s else None
        found = {"lowest_cosine": times.lowest_cosine_of_clip_retrieval} if theirs else {}
        note = "by its own statistics, without its start; it stores vectors in a file, and no pictures"
        rows.append(
            BenchRow(
                "ingest", f"ingest, {case.name}, beside clip-retrieval", "clip-retrieval inference, the same weights",
                "pictures/s", ours, theirs, Wanted(at_least=_TIMES_CLIP_RETRIEVAL), found, note if theirs else ADVICE,
            )
        )  # fmt: skip
    return rows


def _measure(workload: Workload, home: Path, case: _Case, command: Path | None) -> _Times:
    """All sides in turns. Each round has files with other bytes, so that all of them are uploaded each time."""
    system, retriever, times = workload.require_system(), case.retriever, _Times()
    prepared = [
        retriever.prepare_image(decode(data, shorter_side=DECODE_SCALE * retriever.image_size).picture)
        for data in case.files
    ]
    expected = retriever.embed_pixels(prepared, system.settings.embed_batch)
    _ingest(system, case, _write(home / "warm-up", case, case.files[:_WARM_UP], "warm-up"), "bench-warm-up")
    for number in range(_ROUNDS):
        workload.progress(f"ingest: {case.name}, round {number + 1} of {_ROUNDS}")
        folder = _write(home / "pictures", case, case.files, f"round {number}")
        name = f"bench-ingest-{number}"
        spent, index_id = _ingest(system, case, folder, name)
        times.job_s.append(spent.seconds)
        embedding = spend(lambda: retriever.embed_pixels(prepared, system.settings.embed_batch))
        alone = sum(embedding.processor_s.values()) * 1000 / len(case.files)
        times.profiles.append(spent.figures(len(case.files)) | {"processor_ms, embedding alone": alone})
        times.lowest_cosine = min(times.lowest_cosine, _lowest_cosine(system, index_id, expected))
        times.embed_s.append(embedding.seconds)
        if command is not None:
            model = f"open_clip:{CLIP_SHAPE}/{home / CLIP_SHAPE / 'open_clip_model.safetensors'}"
            output = home / "clip-retrieval"
            shutil.rmtree(output, ignore_errors=True)
            theirs = run_clip_retrieval(command, folder, model, system.settings.embed_batch, output)
            times.clip_retrieval_s.append(theirs.seconds)
            cosines = np.einsum("nd,nd->n", theirs.vectors, expected)
            times.lowest_cosine_of_clip_retrieval = float(cosines.min())
    return times


def _write(folder: Path, case: _Case, files: Sequence[bytes], mark: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / f"{number:05}{case.suffix}").write_bytes(marked(data, f"{case.name} {mark}"))
    return folder


def _ingest(system: System, case: _Case, folder: Path, name: str) -> tuple[Spent[None], int]:
    """What the job costs, and the index that it fills."""
    archive_name = f"{name}-{case.retriever.dim}-{len(case.files[0])}"
    index_id = in_transaction(system.engine, _begin_index, case, archive_name)
    return spend(lambda: wait(system, system.client.archives.ingest([folder], archive_name).job_id)), index_id


def _begin_index(connection: Connection, case: _Case, archive_name: str) -> int:
    """An archive whose active index is by the case's retriever, which the workers then load."""
    archive_id = archive.ensure_archive(connection, archive_name).archive_id
    retriever, spec = case.retriever, asdict(case.source) if case.source else None
    index_id = indexes.create_index(connection, archive_id, retriever.version, retriever.dim, spec)
    indexes.activate(connection, index_id)
    return index_id


def _lowest_cosine(system: System, index_id: int, expected: npt.NDArray[np.float32]) -> float:
    """Of each picture's own vector to the nearest that was stored."""
    index = read_at_once(system.engine, vectors.get_index, index_id)
    hits = read_at_once(system.engine, vectors.search, index, expected, k=1)
    return min(found[0].retrieval_score for found in hits)
