"""The report: one complete file that shows hostile text as text and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ragllava.records import AnswerStatus, Candidate, Origin, StoredImage
from ragllava.stages.results import report
from ragllava.stages.results.report import Figure, ReportRow, ReportSummary, write_report
from ragllava.stages.results.results import Previous, ResultRow

VOID = {"meta", "link", "input"}
MODELS = {"index": "i-1", "reranker": "r-1", "generator": "g-1", "prompt": "p-1", "threshold": 0.617}
SUMMARY = ReportSummary("postcards", {AnswerStatus.ANSWERED: 1}, models=MODELS)
HOSTILE = [
    "<script>alert(1)</script>",
    "</style></script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "{{ 7 * 7 }} {% raw %} ${7}",
    "&lt;b&gt; &amp; ]]> <!-- ",
    "W" * 5000,
    "שלום مرحبا",
]


class Page(HTMLParser):
    """The elements of a page in order and its texts; checks that every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.raw:
            self.raw[self._open[-1]][-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def having(self, css_class: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.elements if css_class in attributes.get("class", "").split()]

    def cards(self) -> list[dict[str, str]]:
        return self.having("card")


def jpeg(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, "JPEG")
    return sink.getvalue()


def candidate(number: int, relevance: float, evidence_no: int | None = None, text: str | None = None) -> Candidate:
    image = StoredImage(number, f"{number:064x}", text or f"cards/{number}.png", text or f"caption {number}")
    return Candidate(image, retrieval_rank=number, retrieval_score=0.25, relevance=relevance, evidence_no=evidence_no)


ROW = ReportRow(
    ResultRow(
        line=7,
        custom_id="q-7",
        question="Which colour?",
        status=AnswerStatus.ANSWERED,
        answer="red",
        confidence=0.875,
        candidates=(candidate(0, 0.25), candidate(1, 0.5), candidate(2, 0.9, 1), candidate(3, 0.95, 0)),
        models=MODELS,
        note="a caption was cut",
    ),
    expected="blue",
    correct=False,
    relevant_sources=frozenset({"cards/3.png"}),
)


def written(tmp_path: Path, *rows: ReportRow, summary: ReportSummary = SUMMARY, title: str = "Report") -> Page:
    path = tmp_path / "report.html"
    assert write_report(path, title=title, summary=summary, rows=rows, thumbnail=lambda _: jpeg()) == len(rows)
    return Page(path)


def hostile_row(line: int, text: str) -> ReportRow:
    result = ResultRow(
        line=line,
        custom_id=text,
        question=text,
        status=AnswerStatus.ANSWERED,
        answer=text,
        confidence=0.5,
        candidates=(candidate(1, 0.9, 0, text), candidate(2, 0.1, None, text)),
        models=MODELS,
        note=text,
        error_code=text,
        error=text,
    )
    return ReportRow(result, expected=text, correct=False)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(tmp_path: Path, text: str) -> None:
    models = dict.fromkeys(["index", "reranker", "generator", "prompt"], text) | {"threshold": 0.5}
    summary = ReportSummary(
        text,
        {AnswerStatus.ANSWERED: 5},
        models=models,
        figures=(Figure(text, 0.5, text),),
        all_results=text,
    )
    page = written(tmp_path, hostile_row(1, text), summary=summary, title=text)
    harmless = written(tmp_path, hostile_row(1, "x"), summary=replace(summary, models=models), title="x")
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert [list(attributes) for _, attributes in page.elements] == [list(a) for _, a in harmless.elements]
    assert page.text.count(text) >= 14
    assert page.raw["script"] == harmless.raw["script"]


def test_nothing_is_fetched_and_nothing_runs_but_the_script_of_the_page(tmp_path: Path) -> None:
    page = written(tmp_path, ROW, *(hostile_row(number, text) for number, text in enumerate(HOSTILE, 10)))
    assert Counter(tag for tag, _ in page.elements if tag in ("script", "style", "img", "iframe", "a", "form")) == {
        "script": 1,
        "style": 2,
    }
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")]
        assert attributes.get("href", "data:,").startswith("data:")
    for content in page.raw["style"] + page.raw["script"]:
        assert "http" not in content
        assert "@import" not in content
        assert all(url.startswith("data:image/jpeg;base64,") for url in re.findall(r"url\((.*?)\)", content))


def test_the_policy_names_exactly_the_styles_and_the_script_of_the_page(tmp_path: Path) -> None:
    page = written(tmp_path, ROW)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    directives = {part.split()[0]: part.split()[1:] for part in policy.split(";")}

    def hashes(kind: str) -> list[str]:
        digests = (hashlib.sha256(content.encode()).digest() for content in page.raw[kind])
        return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]

    assert directives == {
        "default-src": ["'none'"],
        "img-src": ["data:"],
        "style-src": hashes("style"),
        "script-src": hashes("script"),
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }


def test_characters_that_reorder_or_hide_text_are_made_visible(tmp_path: Path) -> None:
    page = written(tmp_path, hostile_row(1, "photo\u202egpj.exe\u2066\u0000\x1b"))
    shown = "photo\ufffdgpj.exe\ufffd\ufffd\ufffd"
    assert page.text.count(shown) >= 8
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", (tmp_path / "report.html").read_text())


def test_a_picture_is_embedded_once_however_often_it_is_evidence(tmp_path: Path) -> None:
    requested: list[str] = []

    def thumbnail(sha256: str) -> bytes:
        requested.append(sha256)
        return jpeg("blue")

    rows = [replace(ROW, result=replace(ROW.result, line=line)) for line in (1, 2, 3)]
    path = tmp_path / "report.html"
    write_report(path, title="x", summary=SUMMARY, rows=rows, thumbnail=thumbnail)
    assert sorted(requested) == [f"{2:064x}", f"{3:064x}"]
    assert path.read_text().count("data:image/") == 2
    page = Page(path)
    rules = dict(re.findall(r"\.(p\d+)\{aspect-ratio:(\d+/\d+);", page.raw["style"][1]))
    assert rules == {"p0": "40/30", "p1": "40/30"}
    assert len(page.having("p0")) == len(page.having("p1")) == 3
    embedded = re.findall(r"base64,([A-Za-z0-9+/=]+)", page.raw["style"][1])
    assert {base64.b64decode(content) for content in embedded} == {jpeg("blue")}


def test_evidence_without_a_picture_says_so(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, title="x", summary=SUMMARY, rows=[ROW], thumbnail=lambda _: None)
    page = Page(path)
    assert len(page.having("missing")) == 2
    assert page.text.count("no picture") == 2


def test_a_card_shows_every_step_of_its_question(tmp_path: Path) -> None:
    page = written(tmp_path, ROW)
    (card,) = page.cards()
    assert (card["data-status"], card["data-verdict"], card["id"]) == ("answered", "wrong", "line-7")
    for text in ("line 7 · q-7", "Which colour?", "✗ wrong", "confidence 87.5%", "expected: blue", "a caption was cut"):
        assert text in page.text
    # Best first: 3 and 2 are evidence; 1 and 0 were dropped.
    assert [page.text.index(f"cards/{number}.png") for number in (3, 2, 1, 0)] == sorted(
        page.text.index(f"cards/{number}.png") for number in range(4)
    )
    assert page.text.count("✓ labelled as relevant") == 1
    assert "2 candidates dropped by the reranker" in page.text
    assert [a for tag, a in page.elements if tag == "details"] == [{"class": "dropped"}]
    assert "0.950 relevance η 0.617" in page.text
    assert page.text.count("retrieval score 0.250 · rank 4 → 1") == 1


def test_bars_end_at_the_relevance_and_lines_stand_at_the_threshold(tmp_path: Path) -> None:
    page = written(tmp_path, ROW)
    paths = [attributes["d"] for tag, attributes in page.elements if tag == "path"]
    assert paths.count("M61.7 0V14") == 4
    assert [d for d in paths if d.startswith("M0 7H") and d != "M0 7H100"] == [
        "M0 7H95.0",
        "M0 7H90.0",
        "M0 7H50.0",
        "M0 7H25.0",
    ]
    skyline = [(a["class"], float(a["height"])) for tag, a in page.elements if tag == "rect" and "y" in a]
    assert [name for name, _ in skyline] == ["left", "left", "kept", "kept"]  # in retrieval order
    assert [height for _, height in skyline] == pytest.approx([27.25, 51.5, 90.3, 95.15], abs=0.06)


def found_by_caption(of: Candidate, origin: Origin) -> Candidate:
    return replace(of, origin=origin, caption_rank=0, caption_score=7.5)


def test_a_card_says_what_was_found_by_its_caption(tmp_path: Path) -> None:
    first, second, third = candidate(3, 0.95, 0), candidate(2, 0.9, 1), candidate(1, 0.5)
    shown = (found_by_caption(first, Origin.CAPTION), found_by_caption(second, Origin.BOTH), third)
    page = written(tmp_path, replace(ROW, result=replace(ROW.result, candidates=shown)))
    ranks = re.findall(r"(?:by [a-z ]+ · )?retrieval score 0\.250 · rank \d → \d", page.text)
    assert ranks == [
        "by its caption · retrieval score 0.250 · rank 4 → 1",
        "by picture and caption · retrieval score 0.250 · rank 3 → 2",
        "retrieval score 0.250 · rank 2 → 3",
    ]


@pytest.mark.parametrize(
    ("unread", "sentence"),
    [
        (1, "1 more candidate was not reranked: the evidence sufficed"),
        (2, "2 more candidates were not reranked: the evidence sufficed"),
    ],
)
@pytest.mark.parametrize("dropped", [0, 1])
def test_candidates_that_were_not_reranked_are_counted_and_nothing_else(
    tmp_path: Path, unread: int, sentence: str, dropped: int
) -> None:
    read = (candidate(9, 0.95, 0), *(candidate(8, 0.5) for _ in range(dropped)))
    rest = tuple(replace(candidate(number, 0.0), relevance=None) for number in range(unread))
    page = written(tmp_path, replace(ROW, result=replace(ROW.result, candidates=(*rest, *read))))
    assert page.text.count("not reranked") == page.text.count(sentence) == 1
    bars = [attributes for tag, attributes in page.elements if tag == "rect" and "y" in attributes]
    assert len(bars) == (len(read) if dropped else 0), "one bar compares nothing"
    assert ("relevance of the first 2 reranked candidates, in retrieval order" in page.text) == bool(dropped)
    assert "cards/0.png" not in page.text
    assert page.text.count("dropped by the reranker") == dropped


def test_where_all_were_reranked_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert "not reranked" not in written(tmp_path, ROW).text


def test_a_question_without_evidence_shows_its_best_relevance(tmp_path: Path) -> None:
    result = ResultRow(1, "a", "x", AnswerStatus.NO_EVIDENCE, candidates=(candidate(1, 0.3), candidate(2, 0.4)))
    page = written(tmp_path, ReportRow(result))
    assert (
        "No picture reached the threshold of 0.617; the most relevant has 0.400, so no answer was generated."
        in page.text
    )
    assert page.cards()[0]["data-verdict"] == ""
    assert "by correctness" not in {attributes.get("aria-label") for _, attributes in page.elements}


def test_an_invalid_line_is_a_card_with_its_reason(tmp_path: Path) -> None:
    result = ResultRow(3, None, None, AnswerStatus.FAILED, error_code="empty_question", error="the question is empty")
    page = written(tmp_path, ReportRow(result), summary=ReportSummary("a", {AnswerStatus.FAILED: 1}))
    assert "(no valid question) the question is empty empty_question" in page.text
    assert page.cards()[0]["data-status"] == "failed"


def test_the_head_shows_totals_figures_and_models(tmp_path: Path) -> None:
    counts = {AnswerStatus.ANSWERED: 1500, AnswerStatus.NO_EVIDENCE: 300, AnswerStatus.DEAD: 200}
    summary = ReportSummary(
        "postcards",
        counts,
        images=12345,
        seconds=3725,
        finished_at=datetime(2026, 11, 20, 14, 5, tzinfo=UTC),
        models=MODELS,
        figures=(Figure("answer accuracy", 0.782, "one image"), Figure("recall", 1.0)),
    )
    page = written(tmp_path, ROW, summary=summary)
    assert "2,000 questions to 12,345 pictures in 1 h 02 min, finished 2026-11-20 14:05 UTC" in page.text
    for text in ("1,500 75.0% answered", "300 15.0% no evidence", "0 0% failed", "200 10.0% dead"):
        assert text in page.text
    assert "cancelled" not in [a["class"] for tag, a in page.elements if tag in ("i", "rect")]
    strip = [(a["class"], a["x"], a["width"]) for tag, a in page.elements if tag == "rect" and "y" not in a]
    assert strip == [("answered", "0", "1500"), ("no_evidence", "1500", "300"), ("dead", "1800", "200")]
    assert "answer accuracy one image 78.2% recall 100%" in page.text
    assert "index i-1 reranker r-1 generator g-1 prompt p-1 threshold η 0.617" in page.text


def test_a_large_job_shows_its_first_questions_and_says_where_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_CARDS", 3)
    summary = ReportSummary("a", {AnswerStatus.ANSWERED: 5000}, all_results="ragllava results 12 -o results.jsonl")

    def rows() -> Iterator[ReportRow]:
        for line in (1, 2, 3):
            yield replace(ROW, result=replace(ROW.result, line=line))
        raise AssertionError("rows beyond the limit are not read")

    path = tmp_path / "report.html"
    assert write_report(path, title="x", summary=summary, rows=rows(), thumbnail=lambda _: None) == 3
    page = Page(path)
    assert [card["id"] for card in page.cards()] == ["line-1", "line-2", "line-3"]
    assert (
        "the first 3 questions; to get the results of the other 4,997, run ragllava results 12 -o results" in page.text
    )


def test_a_card_shows_no_more_candidates_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_BARS", 4)
    candidates = tuple(candidate(number, number / 10) for number in range(9))
    page = written(tmp_path, replace(ROW, result=replace(ROW.result, candidates=candidates)))
    assert "9 candidates dropped" in page.text
    assert "and 5 less relevant candidates" in page.text
    assert len([bar for bar in page.having("bar") if "left" in bar["class"]]) == 4


def test_a_job_without_questions_gives_a_page(tmp_path: Path) -> None:
    page = written(tmp_path, summary=ReportSummary("a", {}))
    assert "0 questions" in page.text
    assert page.cards() == []


def test_a_report_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def thumbnail(sha256: str) -> bytes:
        raise RuntimeError("the store went away")

    with pytest.raises(RuntimeError):
        write_report(tmp_path / "r.html", title="x", summary=SUMMARY, rows=[ROW], thumbnail=thumbnail)
    assert list(tmp_path.iterdir()) == []


def test_a_refresh_shows_the_previous_answer(tmp_path: Path) -> None:
    rows = [
        ResultRow(n, f"q{n}", "?", AnswerStatus.ANSWERED, "blue", previous=Previous(7, status, answer, ()))
        for n, (status, answer) in enumerate(
            [(AnswerStatus.ANSWERED, "red"), (AnswerStatus.ANSWERED, "blue"), (AnswerStatus.NO_EVIDENCE, None)]
        )
    ]
    summary = replace(SUMMARY, refresh="refreshes job 7: 1 answers taken over")
    write_report(
        tmp_path / "r.html", title="t", summary=summary, rows=map(ReportRow, rows), thumbnail=lambda _sha256: None
    )
    text = Page(tmp_path / "r.html").text
    assert "refreshes job 7: 1 answers taken over" in text
    assert "before, in job 7: red" in text and "before, in job 7: no evidence" in text
    assert text.count("before, in job 7") == 2


def test_all_pages_lead_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_CARDS", 2)
    rows = [replace(ROW, result=replace(ROW.result, line=line)) for line in range(1, 6)]
    pages = report.page_paths(tmp_path / "my report.html", 5)
    assert [page.name for page in pages] == ["my report.html", "my report-2.html", "my report-3.html"]
    summary = ReportSummary("a", {AnswerStatus.ANSWERED: 5})
    shown = write_report(pages[0], title="t", summary=summary, rows=rows, thumbnail=lambda _sha256: None, pages=pages)
    assert shown == 5
    parsed = [Page(page) for page in pages]
    assert [[card["id"] for card in page.cards()] for page in parsed] == [
        ["line-1", "line-2"],
        ["line-3", "line-4"],
        ["line-5"],
    ]
    assert "questions 3 to 4" in parsed[1].text
    assert 'href="my%20report-3.html"' in pages[1].read_text() and 'href="my%20report.html"' in pages[1].read_text()
    assert "to get the results of the other" not in parsed[0].text


def test_each_outcome_has_its_colour() -> None:
    style = Path(report.__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    rules = [f"{mark}.{status}{{" for status in AnswerStatus for mark in ("i", "rect")]
    assert [rule for rule in rules if rule not in style] == []
