"""What grows when archives and jobs grow: time per question, time per job, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ragllava.evaluation.bench.jobs import SAMPLE, run_job, sample_archive, write_questions
from ragllava.evaluation.bench.memory import MemoryWatch
from ragllava.evaluation.bench.mixed_archive import MixedArchive, MixedArchives
from ragllava.evaluation.bench.rows import BenchRow, Wanted, timed
from ragllava.evaluation.bench.workload import System, Workload
from ragllava.stores import vectors
from ragllava.stores.database import in_transaction

_QUESTIONS = 40  # of a job on archives of several sizes
_SMALLEST = 100  # images
_ROUNDS = 2
_FLAT = 1.2
_TOP_K = 20
_NOTE = (
    "vectors mixed from those of drawn postcards; only images that come near a question have a picture; the index is "
    "the one that an archive of this size has in production"
)
# What the caches of a process may add to what it took for one question, in MiB.
_POSTGRES_CACHES_MIB = 128 + 256  # shared buffers, and the memory of one graph build
_OTHER_MIB = 64


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
            "growth", f"a job of {size:,} questions", f"a job of {smallest:,}", "s", seconds[size], seconds[smallest],
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
        "has_graph": float(archives[size].has_graph),
        "candidates_left_out": float(best[size].left_out),
    }
    return BenchRow(
        "growth", f"a question on {size:,} images", f"on {smaller:,} images", "s",
        best[size].job_s, best[smaller].job_s, wanted, figures, _NOTE,
    )  # fmt: skip


def _measure(system: System, makers: MixedArchives, path: Path, one: MixedArchive) -> _Measured:
    number = len(makers.questions)
    search_s, _ = timed(
        lambda: in_transaction(system.engine, lambda c: vectors.search(c, one.index_id, makers.questions, _TOP_K))
    )
    job_s, job_id = run_job(system, path, one.name)
    judged = sum(len(row.candidates) for row in system.client.results(job_id))
    return _Measured(job_s / number, search_s / number, number * _TOP_K - judged)


def _memory_row(name: str, before_mib: float, peak_mib: float, cache_mib: int) -> BenchRow:
    """The bound is what the process took for one question, and what its caches may hold."""
    if name.startswith("PostgreSQL"):
        room_mib, room = _POSTGRES_CACHES_MIB, "shared buffers and a graph build"
    elif name.startswith("worker"):
        room_mib, room = cache_mib + _OTHER_MIB, "the cache of decoded pictures"
    elif name == "bench":
        room_mib, room = None, ""
    else:
        room_mib, room = _OTHER_MIB, "its buffers"
    bound = None if room_mib is None else before_mib + room_mib
    note = "this process, which holds the vectors and the models of the comparison" if room_mib is None else ""
    return BenchRow(
        "growth", f"memory of {name}", f"one question, and room for {room}" if room else "-", "MiB",
        peak_mib, bound, Wanted(at_most=1.0), {"mib_after_one_question": before_mib}, note,
    )  # fmt: skip
