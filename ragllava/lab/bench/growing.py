"""What grows when archives and jobs grow: time per question, time per job, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ragllava.lab.bench.jobs import SAMPLE, run_job, sample_archive, write_questions
from ragllava.lab.bench.memory import BENCH, MemoryWatch
from ragllava.lab.bench.mixed_archive import MixedArchive, MixedArchives
from ragllava.lab.bench.rows import BenchRow, Wanted, timed
from ragllava.lab.bench.workload import System, Workload
from ragllava.stores.archives import vectors
from ragllava.stores.database import read_at_once

_QUESTIONS = 40  # of a job on archives of several sizes
_SMALLEST = 100  # images
_ROUNDS = 2
_FLAT = 1.2
_TOP_K = 20
_NOTE = (
    "vectors mixed from those of drawn postcards; only images that come near a question have a picture; the index is "
    "the one that an archive of this size has in production"
)
# What a process may take beside what it took for one question, in MiB, and for what.
_ROOMS = {
    "worker": (256, "the cache of decoded pictures and a batch"),
    "PostgreSQL": (512 + 256, "shared buffers and a graph build"),
    "SeaweedFS": (512, "its buffers"),
}
_OTHER_ROOM = (64, "its buffers")


def growth_rows(workload: Workload) -> list[BenchRow]:
    """Jobs of three sizes, archives of three sizes, and what memory the processes took meanwhile."""
    system = workload.require_system()
    with MemoryWatch() as watch:
        texts = [question.text for question in sample_archive(workload)]
        run_job(system, write_questions(system, "first", texts[:1]), SAMPLE)
        before = watch.peaks_mib()
        rows = [*_job_rows(workload, texts), *_archive_rows(workload, texts[:_QUESTIONS])]
        after = watch.peaks_mib()
    cache_mib = system.settings.image_cache_mib
    return rows + [_memory_row(name, before.get(name, 0.0), peak, cache_mib) for name, peak in sorted(after.items())]


def _job_rows(workload: Workload, texts: Sequence[str]) -> list[BenchRow]:
    """The same archive, ten and a hundred times as many questions."""
    system = workload.require_system()
    sizes = sorted({max(1, len(texts) // part) for part in (100, 10, 1)})
    seconds = {}
    for size in sizes:
        workload.progress(f"growth: a job of {size:,} questions")
        seconds[size] = run_job(system, write_questions(system, f"growth-{size}", texts[:size]), SAMPLE)[0]
    smallest = sizes[0]
    return [
        BenchRow(
            "growth", f"growth, a job of {size:,} questions", f"a job of {smallest:,}", "s",
            seconds[size], seconds[smallest],
            Wanted(at_most=size / smallest), {"ms_a_question": seconds[size] / size * 1000},
        )
        for size in sizes[1:]
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Measured:
    """Seconds per question on one archive: of a whole job, and of its search alone."""

    job_s: float
    search_s: float
    left_out: int  # candidates whose picture could not be read: they would make the job faster than it is
    pairs_a_picture: float  # the fewer, the less of a prefix is shared


def _archive_rows(workload: Workload, texts: Sequence[str]) -> list[BenchRow]:
    """The same questions on archives ten and a hundred times as large, in turns."""
    system = workload.require_system()
    makers = MixedArchives(workload, texts)
    sizes = sorted({max(_SMALLEST, workload.vectors // part) for part in (100, 10, 1)})
    archives = {}
    for size in sizes:
        workload.progress(f"growth: making an archive of {size:,} images")
        archives[size] = makers.make(size)
    path = write_questions(system, "growth-archives", texts)
    best: dict[int, _Measured] = {}
    for number in range(_ROUNDS):
        workload.progress(f"growth: {len(texts)} questions on each archive, round {number + 1} of {_ROUNDS}")
        for size in sizes:
            found = _measure(system, makers, path, archives[size])
            best[size] = min(found, best.get(size, found), key=lambda measured: measured.job_s)
    return [
        _archive_row(size, smaller, best, archives, Wanted(at_most=_FLAT) if number else Wanted())
        for number, (smaller, size) in enumerate(pairwise(sizes))
    ]


def _archive_row(
    size: int, smaller: int, best: dict[int, _Measured], archives: dict[int, MixedArchive], wanted: Wanted
) -> BenchRow:
    figures = {
        "search_ms": best[size].search_s * 1000,
        "search_ms_of_reference": best[smaller].search_s * 1000,
        "pairs_a_picture": best[size].pairs_a_picture,
        "pairs_a_picture_of_reference": best[smaller].pairs_a_picture,
        "has_graph": float(archives[size].has_graph),
        "candidates_left_out": float(best[size].left_out),
    }
    return BenchRow(
        "growth", f"growth, a question on {size:,} images", f"on {smaller:,} images", "s",
        best[size].job_s, best[smaller].job_s, wanted, figures, _NOTE,
    )  # fmt: skip


def _measure(system: System, makers: MixedArchives, path: Path, one: MixedArchive) -> _Measured:
    number = len(makers.questions)
    index = read_at_once(system.engine, vectors.get_index, one.index_id)
    search_s, _ = timed(lambda: read_at_once(system.engine, vectors.search, index, makers.questions, _TOP_K))
    job_s, job_id = run_job(system, path, one.name)
    judged = [
        candidate.image.image_id for row in system.client.questions.results(job_id) for candidate in row.candidates
    ]
    left_out, pairs_a_picture = number * _TOP_K - len(judged), len(judged) / len(set(judged))
    return _Measured(job_s / number, search_s / number, left_out, pairs_a_picture)


def _memory_row(name: str, before_mib: float, peak_mib: float, cache_mib: int) -> BenchRow:
    """The bound is what the process took for one question, and what its caches may hold."""
    figures = {"mib_after_one_question": before_mib}
    if name == BENCH:
        note = "this process, which holds the vectors and the models of the comparisons: no part of the system"
        return BenchRow("growth", f"memory, {name}", "-", "MiB", peak_mib, None, figures=figures, note=note)
    room_mib, room = next((found for start, found in _ROOMS.items() if name.startswith(start)), _OTHER_ROOM)
    bound_mib = before_mib + room_mib + (cache_mib if name.startswith("worker") else 0)
    return BenchRow(
        "growth", f"memory, {name}", f"after one question, and room for {room}", "MiB", peak_mib, bound_mib,
        Wanted(at_most=1.0), figures,
    )  # fmt: skip
