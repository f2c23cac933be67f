"""Every file of the hostile corpus ends right or rejected by name, through the way that ingest takes."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from ragllava.decoding import DecoderPool
from ragllava.errors import ImageRejected
from ragllava.images import DecodedImage
from ragllava.records import SourceFile
from ragllava.stages.reading import read_sources
from ragllava.stages.sources import list_sources
from tests.hostile import Case, build_corpus

Outcome = tuple[SourceFile, DecodedImage | ImageRejected]


def decode_listed(files: Sequence[SourceFile]) -> list[Outcome]:
    """What ingest does with a list of files, as far as the pictures go."""
    numbered = [(number, file.uri) for number, file in enumerate(files) if file.rejected is None]
    read = list(read_sources(numbered, None))
    with DecoderPool(2) as pool:
        decoded = dict(
            zip((number for number, _ in read), pool.decode_all([data for _, data in read], 512), strict=True)
        )
    return [(file, decoded.get(no) or ImageRejected(file.rejected or "")) for no, file in enumerate(files)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Case], list[Outcome]]:
    folder = tmp_path_factory.mktemp("hostile") / "archive"
    cases = build_corpus(folder)
    return cases, decode_listed(list(list_sources([folder])))


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
        found = image.picture.getpixel((width * x // 4, height * y // 4))
        assert isinstance(found, tuple)
        if max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 6:
            return f"colour {found} at ({x}/4, {y}/4) instead of {expected}"
    return None


def test_each_file_is_right_or_rejected_for_its_reason(corpus: tuple[list[Case], list[Outcome]]) -> None:
    cases, outcomes = corpus
    waiting: dict[str, list[Case]] = {}
    for case in cases:
        waiting.setdefault(case.source, []).append(case)
    problems = []
    for file, result in outcomes:
        candidates = waiting.get(file.source, [])
        trouble = [problem(case, file, result) for case in candidates]
        if None in trouble:
            candidates.pop(trouble.index(None))
        else:
            problems.append(f"{file.source}: {trouble or 'not expected at all'}")
    assert problems == []


def test_no_file_is_lost_or_listed_twice(corpus: tuple[list[Case], list[Outcome]]) -> None:
    cases, outcomes = corpus
    assert len(cases) >= 100
    assert Counter(file.source for file, _ in outcomes) == Counter(case.source for case in cases)


def test_names_and_reasons_can_be_stored_and_shown(corpus: tuple[list[Case], list[Outcome]]) -> None:
    _, outcomes = corpus
    for file, result in outcomes:
        texts = [file.source, file.uri, file.caption or "", str(result)]
        assert all("\x00" not in text and text.encode("utf-8").decode("utf-8") == text for text in texts)
        assert file.source.isprintable()
        assert file.uri.isascii()


def test_decoding_stays_within_its_memory(corpus: tuple[list[Case], list[Outcome]]) -> None:
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert 0 < peak_kib * 1024 <= 2 * 1024**3


def test_listing_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    build_corpus(folder)
    before = sorted(path for path in tmp_path.rglob("*"))
    decode_listed(list(list_sources([folder])))
    assert sorted(path for path in tmp_path.rglob("*")) == before
