"""What grows when archives and jobs grow: time per question, time per job, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ragllava.lab.bench.jobs import SAMPLE, run_job, sample_questions, write_questions
from ragllava.lab.bench.mixed_archive import MixedArchive, create_archives
from ragllava.lab.bench.processes import BENCH, watched_memory
from ragllava.lab.bench.rows import BenchRow, Wanted, timed
from ragllava.lab.bench.workload import Workload
from ragllava.stores.archives import vector_search, vectors
from ragllava.stores.archives.vectors import Vectors
from ragllava.stores.database import read_at_once

if TYPE_CHECKING:
    from ragllava.client import Client

_QUESTIONS = 40  # of a job on archives of several sizes
_SMALLEST = 100  # images
_ROUNDS = 2
_FLAT = 1.2
_TOP_K = 20
_NOTE = (
    "vectors mixed from those of drawn postcards; only images that are near a question have a picture; the index is "
    "the one that an archive of this size has in production"
)
# How much more memory than for one question a process may use, in MiB, and for what.
_ALLOWANCES = {
    "worker": (256, "the cache of decoded pictures and a batch"),
    "PostgreSQL": (512 + 256, "shared buffers and a graph build"),
    "SeaweedFS": (512, "its buffers"),
}
_DEFAULT_ALLOWANCE = (64, "its buffers")


def growth_rows(workload: Workload) -> list[BenchRow]:
    """Jobs of three sizes, archives of three sizes, and the memory of the processes meanwhile."""
    client = workload.require_client()
    with watched_memory() as peaks_mib:
        texts = sample_questions(workload)
        run_job(client, write_questions(client, "first", texts[:1]), SAMPLE)
        before = peaks_mib()
        rows = [*_job_rows(workload, texts), *_archive_rows(workload, texts[:_QUESTIONS])]
        after = peaks_mib()
    cache_mib = client.settings.image_cache_mib
    return rows + [_memory_row(name, before.get(name, 0.0), peak, cache_mib) for name, peak in sorted(after.items())]


def _sizes(largest: int, smallest: int = 1) -> list[int]:
    """A hundredth, a tenth and all of `largest`, each at least `smallest`, without repetition."""
    return sorted({max(smallest, largest // part) for part in (100, 10, 1)})


def _job_rows(workload: Workload, texts: Sequence[str]) -> list[BenchRow]:
    """The same archive, ten and a hundred times as many questions."""
    client = workload.require_client()
    seconds = {}
    for size in _sizes(len(texts)):
        workload.progress(f"growth: a job of {size:,} questions")
        seconds[size] = run_job(client, write_questions(client, f"growth-{size}", texts[:size]), SAMPLE)[0]
    smallest = min(seconds)
    return [
        BenchRow(
            "growth", f"growth, a job of {size:,} questions", f"a job of {smallest:,}", "s",
            seconds[size], seconds[smallest],
            Wanted(at_most=size / smallest), {"ms_a_question": seconds[size] / size * 1000},
        )
        for size in seconds if size != smallest
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Measured:
    """Seconds per question on one archive: of a complete job, and of its search only."""

    job_s: float
    search_s: float
    left_out: int  # candidates whose picture could not be read: they make the job faster than it should be
    pairs_a_picture: float  # the fewer, the less of a prefix is shared


def _archive_rows(workload: Workload, texts: Sequence[str]) -> list[BenchRow]:
    """The same questions on archives ten and a hundred times as large, in turns."""
    client = workload.require_client()
    questions, archives = create_archives(workload, texts, _sizes(workload.vectors, _SMALLEST))
    path = write_questions(client, "growth-archives", texts)
    rounds: dict[int, list[_Measured]] = {size: [] for size in archives}
    for number in range(_ROUNDS):
        workload.progress(f"growth: {len(texts)} questions on each archive, round {number + 1} of {_ROUNDS}")
        for size, measured in rounds.items():
            measured.append(_measure(client, questions, path, archives[size]))
    best = {size: min(measured, key=lambda measured: measured.job_s) for size, measured in rounds.items()}
    rows = []
    for number, (smaller, size) in enumerate(pairwise(archives)):
        figures = {
            "search_ms": best[size].search_s * 1000,
            "search_ms_of_reference": best[smaller].search_s * 1000,
            "pairs_a_picture": best[size].pairs_a_picture,
            "pairs_a_picture_of_reference": best[smaller].pairs_a_picture,
            "has_graph": float(archives[size].has_graph),
            "candidates_left_out": float(best[size].left_out),
        }
        rows.append(
            BenchRow(
                "growth", f"growth, a question on {size:,} images", f"on {smaller:,} images", "s",
                best[size].job_s, best[smaller].job_s, Wanted(at_most=_FLAT if number else None), figures, _NOTE,
            )
        )  # fmt: skip
    return rows


def _measure(client: Client, questions: Vectors, path: Path, archive: MixedArchive) -> _Measured:
    number = len(questions)
    index = read_at_once(client.engine, vectors.get_index, archive.index_id)
    search_s, _ = timed(partial(read_at_once, client.engine, vector_search.search, index, questions, _TOP_K))
    job_s, job_id = run_job(client, path, archive.name)
    reranked = [candidate.image.image_id for row in client.questions.results(job_id) for candidate in row.candidates]
    left_out, pairs_a_picture = number * _TOP_K - len(reranked), len(reranked) / len(set(reranked))
    return _Measured(job_s / number, search_s / number, left_out, pairs_a_picture)


def _memory_row(name: str, before_mib: float, peak_mib: float, cache_mib: int) -> BenchRow:
    """The limit is what the process used for one question, plus what its caches may hold."""
    figures = {"mib_after_one_question": before_mib}
    if name == BENCH:
        note = "this process, which holds the vectors and the models of the comparisons; it is not part of the system"
        return BenchRow("growth", f"memory, {name}", "-", "MiB", peak_mib, None, figures=figures, note=note)
    allowance_mib, purpose = next(
        (allowance for start, allowance in _ALLOWANCES.items() if name.startswith(start)), _DEFAULT_ALLOWANCE
    )
    limit_mib = before_mib + allowance_mib + (cache_mib if name.startswith("worker") else 0)
    return BenchRow(
        "growth", f"memory, {name}", f"after one question, and room for {purpose}", "MiB", peak_mib, limit_mib,
        Wanted(at_most=1.0), figures,
    )  # fmt: skip
