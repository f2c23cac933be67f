"""Every file of the hostile corpus is decoded correctly, or rejected for its reason, as by ingest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ragllava.errors import ImageRejected
from ragllava.imaging.decode import DecodedImage
from ragllava.imaging.sandbox import DecoderPool
from ragllava.lab.bench.processes import peak_mib
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.reading import read_sources
from ragllava.stages.ingest.sources import list_sources
from tests.support.bad_files import build_corpus
from tests.support.picture_files import Case
from tests.support.processes import decoders

Outcome = tuple[SourceFile, DecodedImage | ImageRejected]


@dataclass(frozen=True)
class Run:
    """What the corpus must give and what it gave."""

    cases: list[Case]
    outcomes: list[Outcome]
    peak_mib: float  # resident memory of the largest decoder
    left_behind: set[Path]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("hostile")
    cases = build_corpus(base / "archive")
    before = set(base.rglob("*"))
    files = list(list_sources([base / "archive"]))
    outcomes, most_mib = ingest(files)
    return Run(cases, outcomes, most_mib, set(base.rglob("*")) - before)


def no_objects(bucket: str, key: str) -> bytes:
    raise AssertionError(f"s3://{bucket}/{key} was read")


def ingest(files: Sequence[SourceFile]) -> tuple[list[Outcome], float]:
    """What ingest does with listed files, as far as the pictures go; and the decoders' peak of memory."""
    numbered = [(number, file.uri) for number, file in enumerate(files) if file.rejected is None]
    read = list(read_sources(numbered, no_objects))
    with DecoderPool(2) as pool:
        results = pool.decode_all([content for _, content in read], lambda image: image, 512)
        decoded = dict(zip((number for number, _ in read), results, strict=True))
        most_mib = max(map(peak_mib, decoders()))
    outcomes = [
        (file, decoded[number] if file.rejected is None else ImageRejected(*file.rejected))
        for number, file in enumerate(files)
    ]
    return outcomes, most_mib


def problem(case: Case, file: SourceFile, result: DecodedImage | ImageRejected) -> str | None:
    """What is wrong with an outcome, or None."""
    if file.caption != case.caption:
        return f"caption {file.caption!r} instead of {case.caption!r}"
    if isinstance(result, DecodedImage):
        return wrong_picture(case, result) if case.rejected is None else f"accepted instead of {case.rejected!r}"
    return None if case.rejected is not None and case.rejected in str(result) else f"rejected: {result}"


def wrong_picture(case: Case, image: DecodedImage) -> str | None:
    if (image.width, image.height) != case.size:
        return f"{image.width} × {image.height} instead of {case.size}"
    width, height = image.picture.size
    for (x, y), expected in zip(((1, 1), (3, 1), (1, 3), (3, 3)), case.colours, strict=True):
        colour = image.picture.getpixel((width * x // 4, height * y // 4))
        assert isinstance(colour, tuple)
        if max(abs(a - b) for a, b in zip(colour, expected, strict=True)) > 6:
            return f"colour {colour} at ({x}/4, {y}/4) instead of {expected}"
    return None


def test_each_file_is_right_or_rejected_for_its_reason(corpus: Run) -> None:
    waiting: dict[str, list[Case]] = {}
    for case in corpus.cases:
        waiting.setdefault(case.source, []).append(case)
    problems = []
    for file, result in corpus.outcomes:
        candidates = waiting.get(file.source, [])
        trouble = [problem(case, file, result) for case in candidates]
        if None in trouble:
            candidates.pop(trouble.index(None))
        else:
            problems.append(f"{file.source}: {trouble or 'not expected at all'}")
    assert problems == []


def test_no_file_is_lost_or_listed_twice(corpus: Run) -> None:
    assert len(corpus.cases) >= 100
    assert Counter(file.source for file, _ in corpus.outcomes) == Counter(case.source for case in corpus.cases)


def test_names_and_reasons_can_be_stored_and_shown(corpus: Run) -> None:
    for file, result in corpus.outcomes:
        reason = str(result) if isinstance(result, ImageRejected) else ""
        for text in (file.source, file.caption or "", reason):
            assert text.isprintable(), text
            assert text.encode("utf-8").decode("utf-8") == text
        assert file.uri.isascii()


def test_decoding_stays_within_its_memory(corpus: Run) -> None:
    assert 0 < corpus.peak_mib <= 2 * 1024


def test_nothing_is_unpacked_to_disk(corpus: Run) -> None:
    assert corpus.left_behind == set()
