"""One run of `ragllava demo`: draw an archive, ingest it, ask about it, compare with the known answers, show them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, get_args

from ragllava.cli.console import base_url, job_path
from ragllava.cli.options import as_answer_options, make_table, package_versions
from ragllava.evaluation.metrics import JobFigures, is_right, score_job
from ragllava.json_records import rounded, write_json_lines
from ragllava.postcards.questions import QuestionStyle
from ragllava.records import Depth, JobKind, KnownAnswer, Retrieval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ragllava.client import Client, JobView, ResultRow
    from ragllava.postcards.archive import PostcardArchive, WrittenArchive
    from ragllava.settings import Settings

Domain = Literal["in_domain", "shifted"]
_LEARNING_ARCHIVE = re.compile(rf"({'|'.join(get_args(Domain))})-postcards-\d+-\d+-\d+", re.ASCII)
EXAMPLES = 12
COMPARED = 50  # questions that are asked a second time by pictures alone


@dataclass
class Demo:
    """One run of the demo: its size, its console, and the seconds that each stage took.

    A run of `demo --learn` has an in-domain or a shifted archive, and draws questions with cues about postcards of one
    `side` only (postcards/archive.py). Its candidates are the nearest pictures alone, and all of them are reranked: the
    reranker learns from those that are wrong. `top_k` None: as the settings say.
    """

    console: Console
    seed: int
    images: int
    questions: int
    seconds: dict[str, float] = field(default_factory=dict)
    domain: Domain | None = None
    side: Callable[[str], bool] | None = None
    top_k: int | None = None
    console_note: str = "to sign in, "  # before what to do

    @property
    def name(self) -> str:
        """The archive's name; a demo of another size or seed has an archive of its own."""
        name = f"postcards-{self.seed}-{self.images}-{self.questions}"
        return f"{self.domain}-{name}" if self.domain else name

    @staticmethod
    def is_learning_archive(name: str) -> bool:
        """Whether an archive has a name that `demo --learn` gives, with any seed and size."""
        return _LEARNING_ARCHIVE.fullmatch(name) is not None

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
        compared = self.compare(client, written, archive, rows)
        answers = {question.custom_id: question for question in archive.questions}
        for table in (
            _example_table(rows[:EXAMPLES], answers),
            _figure_table(figures),
            _type_table(figures),
            _retrieval_table(compared),
        ):
            self.console.print(table)
        with self.timed("report"):
            client.questions.save_report(job.job_id, report, answers, figures, replace_any=True)
        self.console.print(f"report: {report.absolute()}, open it in a browser")
        self.console.print(f"console: {base_url(client.settings)}{job_path(job.job_id)}", soft_wrap=True)
        self.console.print(
            f"         {self.console_note}open the link that `ragllava console --job {job.job_id}` prints"
        )
        return {
            "seed": self.seed,
            "images": ingested.progress.total,
            "ingested": ingested.progress.by_status,
            **figures.as_json(),
            "retrieval": [way.as_json() for way in compared],
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
                self.seed,
                self.images,
                self.questions,
                style=QuestionStyle.CUES if self.domain else QuestionStyle.NAME,
                shifted=self.domain == "shifted",
                side=self.side,
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
            JobKind.INGEST,
            lambda: client.archives.ingest([written.pictures], self.name, written.captions).job_id,
        )

    def ask(self, client: Client, questions: Path, *, by_picture: bool = False) -> JobView:
        """Answer a file of questions as one job; `by_picture`: from the nearest pictures alone."""
        options = as_answer_options(
            client,
            top_k=self.top_k,
            retrieval=Retrieval.PICTURE if by_picture or self.domain else None,
            depth=Depth.FIXED if self.domain else None,
        )
        return self._wait_for_job(
            client,
            JobKind.ANSWER,
            lambda: client.questions.submit(questions, self.name, options).job_id,
            questions,
            "answer by pictures alone" if by_picture else None,
        )

    def compare(
        self, client: Client, written: WrittenArchive, archive: PostcardArchive, rows: Sequence[ResultRow]
    ) -> tuple[ComparedRetrieval, ComparedRetrieval]:
        """The first questions answered from the nearest pictures alone, and as all were asked, with these `rows`."""
        compared = archive.questions[:COMPARED]
        path = written.questions.with_name("by-picture.jsonl")
        write_json_lines([{"custom_id": row.custom_id, "question": row.text} for row in compared], path)
        job = self.ask(client, path, by_picture=True)
        asked = {question.custom_id for question in compared}
        by_picture = [*client.questions.results(job.job_id)]
        as_asked = [row for row in rows if row.custom_id in asked]
        return (
            ComparedRetrieval.of(Retrieval.PICTURE, compared, by_picture),
            ComparedRetrieval.of(client.settings.retrieval, compared, as_asked),
        )

    def _wait_for_job(
        self,
        client: Client,
        kind: JobKind,
        submit: Callable[[], int],
        file: Path | None = None,
        stage: str | None = None,
    ) -> JobView:
        """Submit a job and wait for it; one about this file that an interrupted run left open is continued instead."""
        from ragllava.cli.progress import outcome_line, wait_with_bar

        stage = stage or kind.value
        with self.timed(stage):
            for left in client.jobs.list(only_open=True):
                is_ours = (left.archive, left.kind) == (self.name, kind)
                if is_ours and (file is None or str(left.spec["input"]).endswith(file.name)):
                    self.console.print(f"continuing job {left.job_id}, which was interrupted")
                    job_id = left.job_id
                    break
            else:
                job_id = submit()
            job = wait_with_bar(client, job_id, stage, self.console)
        self.console.print(f"{outcome_line(job)}, in {self.seconds[stage]:.1f} s")
        return job


@dataclass(frozen=True, slots=True)
class ComparedRetrieval:
    """What one way of retrieval gave for the same questions.

    `found` is the share of their pictures that are candidates, `right` that of right answers, `reranked` the mean
    number of candidates that were reranked.
    """

    retrieval: Retrieval
    questions: int
    found: float
    right: float
    reranked: float

    @classmethod
    def of(cls, retrieval: Retrieval, questions: Sequence[KnownAnswer], rows: Sequence[ResultRow]) -> ComparedRetrieval:
        """The figures of these results."""
        figures = score_job(questions, rows).all
        reranked = fmean(sum(c.relevance is not None for c in row.candidates) for row in rows)
        return cls(retrieval, len(questions), figures.candidate_recall, figures.answer_accuracy, reranked)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        values: dict[str, Any] = rounded(asdict(self))
        return values


def _retrieval_table(ways: Sequence[ComparedRetrieval]) -> Table:
    rows = ((way.retrieval.value, f"{way.found:.3f}", f"{way.right:.3f}", f"{way.reranked:.1f}") for way in ways)
    columns = ("retrieval", "right pictures among the candidates", "right answers", "pictures reranked")
    return make_table(columns, rows, title=f"the first {ways[0].questions} questions, by retrieval")


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
