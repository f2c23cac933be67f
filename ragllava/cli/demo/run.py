"""One run of `ragllava demo`: draw an archive, ingest it, ask about it, compare with the known answers, show them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragllava.cli.options import package_versions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ragllava.client import Client, JobView, ResultRow
    from ragllava.evaluation.metrics import JobFigures
    from ragllava.postcards.archive import PostcardArchive, WrittenArchive
    from ragllava.records import JobKind, KnownAnswer
    from ragllava.settings import Settings

World = Literal["home", "shifted"]
EXAMPLES = 12
PACKAGES = ("ragllava", "celery", "torch", "transformers", "open_clip_torch", "SQLAlchemy", "pgvector", "minio")


@dataclass
class Demo:
    """One run of the demo: its size, its console, and the seconds that each stage took.

    A run of `demo --learn` has its postcards from one of two worlds, and draws questions about postcards of one `side`
    only (postcards/archive.py). `top_k` None: as the settings say.
    """

    console: Console
    seed: int
    images: int
    questions: int
    seconds: dict[str, float] = field(default_factory=dict)
    world: World = "home"
    learns: bool = False
    side: Callable[[str], bool] | None = None
    top_k: int | None = None

    @property
    def name(self) -> str:
        """The archive's name; a demo of another size or seed has an archive of its own."""
        name = f"postcards-{self.seed}-{self.images}-{self.questions}"
        return f"{self.world}-{name}" if self.learns else name

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)

    def run(self, client: Client, report: Path) -> dict[str, Any]:
        """All stages in order; returns the figures for `--json`."""
        written, archive = self.draw(client.settings)
        ingested = self.ingest(client, written)
        job = self.ask(client, written.questions)
        figures, rows = self.score(client, job, archive)
        self.show(rows, archive, figures)
        self.save(client, job, archive, report, figures)
        return self.as_json(ingested, job, figures)

    def draw(self, settings: Settings) -> tuple[WrittenArchive, PostcardArchive]:
        """Draw the postcards into the home, unless an earlier run did."""
        from ragllava.cli.progress import bars
        from ragllava.postcards.archive import draw_archive, write_archive

        with self.timed("draw"), bars(self.console) as progress:
            task = progress.add_task("draw postcards", total=self.images, note="")
            archive = draw_archive(
                self.seed, self.images, self.questions, shifted=self.world == "shifted", side=self.side
            )
            written = write_archive(
                settings.home / "demo" / self.name,
                archive,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        self.console.print(f"drew {self.images} postcards in {self.seconds['draw']:.1f} s: {written.pictures}")
        return written, archive

    def ingest(self, client: Client, written: WrittenArchive) -> JobView:
        """Ingest the postcards by the ingest workers; those that an earlier run stored are recognised."""
        from ragllava.cli.progress import outcome_line, wait_with_bar
        from ragllava.records import JobKind

        with self.timed("ingest"):
            job_id = self._interrupted(client, JobKind.INGEST)
            if job_id is None:
                job_id = client.archives.ingest([written.pictures], self.name, written.captions).job_id
            job = wait_with_bar(client, job_id, "ingest", self.console)
        self.console.print(f"{outcome_line(job)}, in {self.seconds['ingest']:.1f} s")
        return job

    def ask(self, client: Client, questions: Path) -> JobView:
        """Answer a file of questions as one job; a job that an interrupted run left open is finished instead."""
        from ragllava.cli.options import as_answer_options
        from ragllava.cli.progress import outcome_line, wait_with_bar
        from ragllava.records import JobKind

        with self.timed("answer"):
            job_id = self._interrupted(client, JobKind.ANSWER)
            if job_id is None:
                options = as_answer_options(client, self.top_k, None, None, False)
                job_id = client.questions.submit(questions, self.name, options).job_id
            job = wait_with_bar(client, job_id, "answer", self.console)
        self.console.print(f"{outcome_line(job)}, in {self.seconds['answer']:.1f} s")
        return job

    def _interrupted(self, client: Client, kind: JobKind) -> int | None:
        """The job that an interrupted run of this demo left open, if it did."""
        for job in client.jobs.list(only_open=True):
            if job.archive == self.name and job.kind == kind:
                self.console.print(f"continuing job {job.job_id}, which was interrupted")
                return job.job_id
        return None

    def score(self, client: Client, job: JobView, archive: PostcardArchive) -> tuple[JobFigures, list[ResultRow]]:
        """Compare with the known answers."""
        from ragllava.evaluation.metrics import score_job

        rows = [*client.questions.results(job.job_id)]
        return score_job(archive.questions, (with_candidates(row) for row in rows)), rows

    def show(self, rows: list[ResultRow], archive: PostcardArchive, figures: JobFigures) -> None:
        """A table of examples, then the totals."""
        answers = {question.custom_id: question for question in archive.questions}
        self.console.print(_example_table(rows[:EXAMPLES], answers))
        self.console.print(_figure_table(figures))
        self.console.print(_type_table(figures))

    def save(self, client: Client, job: JobView, archive: PostcardArchive, path: Path, figures: JobFigures) -> None:
        """Write the HTML report."""
        with self.timed("report"):
            answers = {question.custom_id: question for question in archive.questions}
            client.questions.save_report(job.job_id, path, answers, figures)
        self.console.print(f"report: {path.absolute()}, open it in a browser")

    def as_json(self, ingested: JobView, job: JobView, figures: JobFigures) -> dict[str, Any]:
        """The figures for `--json`."""
        return {
            "seed": self.seed,
            "images": ingested.progress.total,
            "ingested": ingested.progress.by_status,
            **figures.as_json(),
            "job": job.job_id,
            "seconds": self.seconds,
            "versions": package_versions(*PACKAGES),
        }


def with_candidates(row: ResultRow) -> dict[str, Any]:
    """A result line with all its candidates, as score_job takes it."""
    candidates = [
        {"source": c.image.source, "retrieval_score": c.retrieval_score, "relevance": c.relevance}
        for c in sorted(row.candidates, key=lambda candidate: candidate.retrieval_rank)
    ]
    return row.as_json() | {"candidates": candidates}


def _example_table(rows: list[ResultRow], answers: Mapping[str, KnownAnswer]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ragllava.client.reporting import is_right

    table = Table("question", "answer", "known", "", "evidence (relevance)", title="examples")
    for row in rows:
        right = answers[row.custom_id or ""]
        mark = Text("right", "green") if is_right(row, right) else Text("wrong", "red")
        evidence = "\n".join(f"{c.image.caption or c.image.source} ({c.relevance:.2f})" for c in row.evidence)
        table.add_row(
            *map(Text, (row.question or "", row.answer or row.status.value, right.answer)), mark, Text(evidence)
        )
    return table


def _figure_table(figures: JobFigures) -> Table:
    from rich.table import Table

    groups = {"all": figures.all, "one picture": figures.one_image, "two pictures": figures.two_image}
    present = {name: group for name, group in groups.items() if group is not None}
    table = Table("figure", *present, title="totals")
    for name in ("questions", "answered", "no_evidence", "failed", "missing"):
        table.add_row(name.replace("_", " "), *(str(getattr(group, name)) for group in present.values()))
    for k in (1, 2, 5, 20):
        table.add_row(f"CLIP recall@{k}", *(f"{group.retrieval_recall[k]:.3f}" for group in present.values()))
    for k in (1, 2):
        table.add_row(f"reranked recall@{k}", *(f"{group.reranked_recall[k]:.3f}" for group in present.values()))
    table.add_row("right answers", *(f"{group.answer_accuracy:.3f}" for group in present.values()))
    return table


def _type_table(figures: JobFigures) -> Table:
    from rich.table import Table

    table = Table("type", "questions", "right", "always the most frequent answer", title="by type of question")
    for name, kind in figures.by_type.items():
        table.add_row(name, str(kind.questions), f"{kind.accuracy:.3f}", f"{kind.majority_share:.3f}")
    return table
