"""One run of `ragllava demo`: draw an archive, ingest it, ask about it, compare with the known answers, show them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragllava.cli.options import as_answer_options, make_table, package_versions
from ragllava.evaluation.metrics import JobFigures, is_right, score_job
from ragllava.records import KnownAnswer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ragllava.client import Client, JobView, ResultRow
    from ragllava.postcards.archive import PostcardArchive, WrittenArchive
    from ragllava.settings import Settings

Domain = Literal["in_domain", "shifted"]
EXAMPLES = 12


@dataclass
class Demo:
    """One run of the demo: its size, its console, and the seconds that each stage took.

    A run of `demo --learn` has an in-domain or a shifted archive, and draws questions about postcards of one `side`
    only (postcards/archive.py). `top_k` None: as the settings say.
    """

    console: Console
    seed: int
    images: int
    questions: int
    seconds: dict[str, float] = field(default_factory=dict)
    domain: Domain | None = None
    side: Callable[[str], bool] | None = None
    top_k: int | None = None

    @property
    def name(self) -> str:
        """The archive's name; a demo of another size or seed has an archive of its own."""
        name = f"postcards-{self.seed}-{self.images}-{self.questions}"
        return f"{self.domain}-{name}" if self.domain else name

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)

    def run(self, client: Client, report: Path) -> dict[str, Any]:
        """All stages in order; prints examples and totals, writes the report, and returns the figures for `--json`."""
        written, archive = self.draw(client.settings)
        ingested = self.ingest(client, written)
        job = self.ask(client, written.questions)
        rows = [*client.questions.results(job.job_id)]
        figures = score_job(archive.questions, rows)
        answers = {question.custom_id: question for question in archive.questions}
        for table in (_example_table(rows[:EXAMPLES], answers), _figure_table(figures), _type_table(figures)):
            self.console.print(table)
        with self.timed("report"):
            client.questions.save_report(job.job_id, report, answers, figures)
        self.console.print(f"report: {report.absolute()}, open it in a browser")
        return {
            "seed": self.seed,
            "images": ingested.progress.total,
            "ingested": ingested.progress.by_status,
            **figures.as_json(),
            "job": job.job_id,
            "seconds": self.seconds,
            "versions": package_versions(),
        }

    def draw(self, settings: Settings) -> tuple[WrittenArchive, PostcardArchive]:
        """Draw the postcards into the home, unless an earlier run did."""
        from ragllava.cli.progress import bar
        from ragllava.postcards.archive import draw_archive, write_archive

        with self.timed("draw"), bar("draw postcards", self.console) as update:
            archive = draw_archive(
                self.seed, self.images, self.questions, shifted=self.domain == "shifted", side=self.side
            )
            written = write_archive(
                settings.home / "demo" / self.name,
                archive,
                lambda done, total: update(completed=done, total=total),
            )
        self.console.print(f"drew {self.images} postcards in {self.seconds['draw']:.1f} s: {written.pictures}")
        return written, archive

    def ingest(self, client: Client, written: WrittenArchive) -> JobView:
        """Ingest the postcards by the ingest workers; those that an earlier run stored are recognised."""
        return self._wait_for_job(
            client,
            "ingest",
            lambda: client.archives.ingest([written.pictures], self.name, written.captions).job_id,
        )

    def ask(self, client: Client, questions: Path) -> JobView:
        """Answer a file of questions as one job."""
        options = as_answer_options(client, top_k=self.top_k)
        return self._wait_for_job(
            client, "answer", lambda: client.questions.submit(questions, self.name, options).job_id
        )

    def _wait_for_job(self, client: Client, kind: str, submit: Callable[[], int]) -> JobView:
        """Submit a job and wait for it; a job of the kind that an interrupted run left open is continued instead."""
        from ragllava.cli.progress import outcome_line, wait_with_bar

        with self.timed(kind):
            for left in client.jobs.list(only_open=True):
                if left.archive == self.name and left.kind == kind:
                    self.console.print(f"continuing job {left.job_id}, which was interrupted")
                    job_id = left.job_id
                    break
            else:
                job_id = submit()
            job = wait_with_bar(client, job_id, kind, self.console)
        self.console.print(f"{outcome_line(job)}, in {self.seconds[kind]:.1f} s")
        return job


def _example_table(rows: list[ResultRow], answers: Mapping[str, KnownAnswer]) -> Table:
    from rich.text import Text

    def cells(row: ResultRow) -> tuple[object, ...]:
        right = answers[row.custom_id or ""]
        mark = Text("right", "green") if is_right(row, right) else Text("wrong", "red")
        evidence = "\n".join(f"{c.image.caption or c.image.source} ({c.relevance:.2f})" for c in row.evidence)
        return row.question or "", row.answer or row.status, right.answer, mark, evidence

    return make_table(("question", "answer", "known", "", "evidence (relevance)"), map(cells, rows), title="examples")


def _figure_table(figures: JobFigures) -> Table:
    groups = {"all": figures.all, "one picture": figures.one_image, "two pictures": figures.two_image}
    shown = {title: group.by_name() for title, group in groups.items() if group is not None}
    rows = [(_label(name), *(_cell(group[name]) for group in shown.values())) for name in shown["all"]]
    return make_table(("figure", *shown), rows, title="totals")


def _label(name: str) -> str:
    return "right answers" if name == "answer_accuracy" else name.replace("_at_", "@").replace("_", " ")


def _cell(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _type_table(figures: JobFigures) -> Table:
    columns = ("type", "questions", "right", "always the most frequent answer")
    rows = (
        (name, kind.questions, f"{kind.score:.3f}", f"{kind.majority_share:.3f}")
        for name, kind in figures.by_type.items()
    )
    return make_table(columns, rows, title="by type of question")
