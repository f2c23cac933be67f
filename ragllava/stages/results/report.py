"""The report of a job: one HTML file with its pictures inside, which fetches nothing from outside.

Each picture is embedded once, as a CSS class, even if many answers use it. The page is complete with scripts off; the
script only filters. A strict Content-Security-Policy names the page's own styles and script by hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ragllava.errors import UsageError
from ragllava.records import AnswerStatus, Candidate, by_relevance
from ragllava.stages.results.output_files import output_file, overwriting
from ragllava.stages.results.results import ResultRow

MAX_CARDS = 2_000
_HEAD_BYTES = 4_096
_OWNER = re.compile(r'<meta name="ragllava-(job|archive)" content="([^"]*)">')
MAX_BARS = 50  # of candidates in the chart of a card

# Control characters, and those that reorder the text around them: captions are not trusted.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured share in [0, 1], such as the accuracy of the answers; `note` says of what it is a share."""

    name: str
    value: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """What is shown above the cards. `by_status` counts all questions of the job, also those without a card.

    `models` is a ModelStamp as JSON. `caution` is what to know before trusting the answers. `refresh` says what a
    refresh asked again, None for other jobs; `plan` what was expected of the job, and its limits. `all_results` is the
    command that writes the results of all questions; it is shown when some have no card, beside `all_pages`, the
    command that writes a page for each MAX_CARDS of them.
    """

    archive: str
    by_status: Mapping[AnswerStatus, int]
    images: int | None = None
    seconds: float | None = None
    finished_at: datetime | None = None
    models: Mapping[str, Any] | None = None
    figures: tuple[Figure, ...] = ()
    caution: str | None = None
    refresh: str | None = None
    plan: str | None = None
    all_results: str = "ragllava results"
    all_pages: str = "ragllava report --all-pages"
    job_id: int | None = None


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A result with its gold label: the right answer, whether the result is right, and the sources that show it."""

    result: ResultRow
    expected: str | None = None
    correct: bool | None = None
    relevant_sources: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Picture:
    """An embedded picture: its CSS class, its data: URI, its size in pixels."""

    css_class: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _ShownCandidate:
    """A candidate on a card; its `rank` after reranking counts from 1."""

    candidate: Candidate
    rank: int
    relevant: bool
    picture: _Picture | None = None


@dataclass(frozen=True, slots=True)
class _Card:
    row: ReportRow
    asked: _Picture | None  # the picture that the question was asked with
    threshold: float | None
    by_retrieval: list[Candidate]
    evidence: list[_ShownCandidate]
    dropped: list[_ShownCandidate]
    dropped_count: int
    unread_count: int  # candidates that were not reranked


@dataclass(frozen=True, slots=True)
class _Part:
    """Which page it is, from 0, the file names of all pages, and how many questions are on those before it."""

    number: int
    names: tuple[str, ...]
    before: int


def page_paths(path: Path, questions: int) -> list[Path]:
    """The files of all pages of a report: `report.html`, `report-2.html`, …, one for each MAX_CARDS questions."""
    pages = max(1, -(-questions // MAX_CARDS))
    return [path, *(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, pages + 1))]


def write_report(
    path: Path,
    *,
    title: str,
    summary: ReportSummary,
    rows: Iterable[ReportRow],
    thumbnail: Callable[[str], bytes | None],
    pages: Sequence[Path] = (),
) -> int:
    """Write the report and return how many questions it shows: the first MAX_CARDS of `rows`; no more are read.

    With `pages`, of which `path` is the first, write all of them, with links between them. `thumbnail` returns, for an
    image's sha256, a small JPEG or PNG (256 px a side is enough), or None when there is none; it is called once for
    each picture on a page: of evidence, or of a question. Raises UsageError when a file cannot be written there.
    """
    remaining = iter(rows)
    paths = list(pages) or [path]
    shown = 0
    for number, page in enumerate(paths):
        part = _Part(number, tuple(other.name for other in paths), shown)
        shown += _write_page(page, title, summary, list(islice(remaining, MAX_CARDS)), thumbnail, part)
    return shown


def _write_page(
    path: Path,
    title: str,
    summary: ReportSummary,
    rows: Sequence[ReportRow],
    thumbnail: Callable[[str], bytes | None],
    part: _Part,
) -> int:
    pictures: dict[str, _Picture | None] = {}

    def picture_of(sha256: str) -> _Picture | None:
        if sha256 not in pictures:
            pictures[sha256] = _embedded(thumbnail(sha256), f"p{len(pictures)}")
        return pictures[sha256]

    cards = [_card(row, summary, picture_of) for row in rows]
    total = sum(summary.by_status.values())
    context = {
        "title": title,
        "summary": summary,
        "total": total,
        "left_out": max(0, total - len(cards)) if len(part.names) == 1 else 0,
        "part": part,
        "cards": cards,
        "pictures": [picture for picture in pictures.values() if picture],
        "statuses": list(AnswerStatus),
        "labelled": any(card.row.correct is not None for card in cards),
    }
    with output_file(path) as written, written.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_environment().get_template("report.html.j2").generate(context))
    return len(cards)


def require_own_report(path: Path, job_id: int, archive: str) -> None:
    """Raise UsageError if a file is there that is not an earlier report of this job."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode(errors="replace")
    values = {name: html.unescape(value) for name, value in _OWNER.findall(head)}
    job, owner = values.get("job", ""), values.get("archive", "")
    if (job, owner) != (str(job_id), str(_printable(archive))):
        raise UsageError(overwriting(path, job_id, archive, int(job) if job.isdigit() else None, owner))


def _embedded(content: bytes | None, css_class: str) -> _Picture | None:
    from PIL import Image

    if content is None:
        return None
    with Image.open(io.BytesIO(content)) as image:
        kind, (width, height) = Image.MIME[str(image.format)], image.size
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return _Picture(css_class, uri, width, height)


def _card(row: ReportRow, summary: ReportSummary, picture_of: Callable[[str], _Picture | None]) -> _Card:
    result = row.result
    models = result.models or summary.models or {}

    def shown(candidate: Candidate, rank: int) -> _ShownCandidate:
        image = candidate.image
        picture = picture_of(image.sha256) if candidate.evidence_no is not None else None
        is_relevant = image.source in row.relevant_sources
        return _ShownCandidate(candidate, rank, is_relevant, picture)

    everything = [shown(candidate, rank) for rank, candidate in enumerate(by_relevance(result.candidates), start=1)]
    evidence = [entry for entry in everything if entry.candidate.evidence_no is not None]
    evidence.sort(key=lambda entry: entry.candidate.evidence_no or 0)
    dropped = [
        entry for entry in everything if entry.candidate.evidence_no is None and entry.candidate.relevance is not None
    ]
    reranked = [candidate for candidate in result.candidates if candidate.relevance is not None]
    return _Card(
        row=row,
        asked=picture_of(result.picture) if result.picture else None,
        threshold=models.get("threshold"),
        by_retrieval=sorted(reranked, key=lambda candidate: candidate.retrieval_rank)[:MAX_BARS],
        evidence=evidence,
        dropped=dropped[:MAX_BARS],
        dropped_count=len(dropped),
        unread_count=sum(candidate.relevance is None for candidate in result.candidates),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {
        "duration": _duration,
        "percent": lambda share: f"{share:.0%}" if share in (0, 1) else f"{share:.1%}",
        "status_name": lambda status: status.replace("_", " "),
        "csp_hash": lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
    }
    return environment


def _printable(value: Any) -> Any:
    """Called for every text that the template prints: invisible characters become U+FFFD."""
    return _INVISIBLE.sub("\ufffd", value) if type(value) is str else value


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    total_minutes, remaining_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(total_minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {remaining_seconds:02d} s"
