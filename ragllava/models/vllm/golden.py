"""Golden pairs: drawn pictures and questions whose scores tell whether two backends compute the same.

The results of the weights for them are stored under `<home>/cache/golden`, one file for a base and one for each
adapter. A machine that lacks the weights can take those files from one that has them (RAGLLAVA_VLLM_GOLDEN_DIR).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import Manifest, digest, write_cache
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.reranker import Pair, Reranker
from ragllava.settings import Settings

_SET = "golden-1"  # must change with the pictures and texts below
_ANSWER_TOKENS = 8
_SURE = 0.6  # below this confidence, two words may be almost as likely, and rounding decides between them
_SKY, _GRASS = (150, 190, 230), (90, 140, 80)


@dataclass(frozen=True, slots=True)
class _View:
    caption: str
    question: str
    colour: tuple[int, int, int]
    windows: int


# Bases that can read, and the mini models, know whose caption a question is about. The letters and blanks are unusual,
# because a template that loses one is a common reason for wrong scores.
_VIEWS = (
    _View("Harlow Lighthouse, Port Ansel, 1932", "What color is the Harlow Lighthouse?", (190, 40, 40), 3),
    _View("Fenwick Tower, Port Wexley, 1948", "How many windows does the Fenwick Tower have?", (60, 80, 180), 5),
    _View("  Château d'Été —\nWenby, 1911", "Is the “Château d'Été”  in Wenby yellow?\n", (220, 190, 60), 2),
    _View("Marstead Temple, Wenby, 1938", "What shape is the roof of the Marstead Temple?", (120, 70, 140), 4),
)


@dataclass(frozen=True, slots=True)
class GoldenAnswer:
    """An answer, its confidence, and the number of its pictures."""

    text: str
    confidence: float
    pictures: int


@dataclass(frozen=True, slots=True)
class GoldenScores:
    """The results of one model for the golden pairs and requests, in their order."""

    relevances: list[float]
    answers: list[GoldenAnswer]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A file of golden scores; `adapter` is a digest."""

    files: Manifest
    adapter: str | None
    scores: GoldenScores


@dataclass(frozen=True, slots=True)
class Parity:
    """How well two backends agree: the largest difference of a relevance, beside the range that they cover."""

    largest: float
    lowest: float
    highest: float
    pairs: int

    def __str__(self) -> str:
        """One sentence for users."""
        return (
            f"{self.pairs} golden relevances from {self.lowest:.3f} to {self.highest:.3f} differ by {self.largest:.1e}"
        )


def golden_pairs() -> list[Pair]:
    """Each picture with its own question and with another's, two without captions, one search by caption."""
    pictures = [_draw(view) for view in _VIEWS]
    pairs = []
    for number, (view, picture) in enumerate(zip(_VIEWS, pictures, strict=True)):
        pairs += [Pair(text, view.caption, picture) for text in (view.question, _VIEWS[number - 1].question)]
    pairs += [Pair(view.question, None, picture) for view, picture in zip(_VIEWS[:2], pictures, strict=False)]
    return [*pairs, Pair("A red lighthouse on grass .", None, pictures[0], by_caption=True)]


def golden_requests(top_n: int) -> list[AnswerRequest]:
    """Questions about one picture each and, if an answer may use several pictures, one about two."""
    requests = [AnswerRequest(view.question, (view.caption,), (_draw(view),)) for view in _VIEWS]
    if top_n > 1:
        question = "Which is older, the Harlow Lighthouse or the Fenwick Tower?"
        captions, pictures = (_VIEWS[0].caption, _VIEWS[1].caption), (_draw(_VIEWS[0]), _draw(_VIEWS[1]))
        requests.append(AnswerRequest(question, captions, pictures))
    return requests


def score_golden(reranker: Reranker, generator: Generator, top_n: int = 2) -> GoldenScores:
    """The results of the two. Raises what they raise."""
    requests = golden_requests(top_n)
    answers = generator.answer(requests, max_tokens=_ANSWER_TOKENS, with_captions=True, batch_size=1)
    return GoldenScores(
        [score.value for score in reranker.relevance(golden_pairs(), batch_size=1)],
        [
            GoldenAnswer(answer.text, answer.confidence, len(request.pictures))
            for request, answer in zip(requests, answers, strict=True)
        ],
    )


def compare(expected: GoldenScores, actual: GoldenScores, tolerance: float) -> Parity:
    """How far `actual` is from `expected`. Raises ModelUnavailable with the first difference above the tolerance.

    A different answer counts if the confidence of the expected one is high.
    """
    for number, (right, score) in enumerate(zip(expected.relevances, actual.relevances, strict=True), 1):
        if abs(right - score) > tolerance:
            raise ModelUnavailable(f"golden pair {number} scores {score:.4f} there, and {right:.4f} by the weights")
    # If answers use one picture only, `actual` has no answer to the last request, which is about two.
    for answer, given in zip(expected.answers, actual.answers, strict=False):
        same = answer.text == given.text
        if (same and abs(answer.confidence - given.confidence) > tolerance) or (not same and answer.confidence > _SURE):
            raise ModelUnavailable(
                f"a golden question is answered {given.text!r} ({given.confidence:.4f}) there, and {answer.text!r} "
                f"({answer.confidence:.4f}) by the weights"
            )
    largest = max(abs(right - score) for right, score in zip(expected.relevances, actual.relevances, strict=True))
    return Parity(largest, min(expected.relevances), max(expected.relevances), len(expected.relevances))


class GoldenFiles:
    """The golden scores that are stored on this machine."""

    def __init__(self, settings: Settings) -> None:
        """Reads and writes nothing yet."""
        self.home = settings.home / "cache" / "golden"
        self._folders = [folder for folder in (settings.vllm_golden_dir, self.home) if folder is not None]

    def find(self, files: Manifest, adapter: str | None) -> GoldenScores | None:
        """Those of a base, by its files, or of an adapter on it, by its digest. Raises ModelUnavailable."""
        for folder in self._folders:
            if stored := _read(folder / _name(files, adapter)):
                return stored.scores
        return None

    def keep(self, files: Manifest, adapter: str | None, scores: GoldenScores) -> None:
        """Store them, if the folder can be written."""
        write_cache(self.home / _name(files, adapter), asdict(_Stored(files, adapter, scores)))

    def complete(self, files: Manifest) -> Manifest | None:
        """All files, with their hashes, of the base whose files beside the weights are `files`; None: not stored."""
        for folder in self._folders:
            for file in sorted(folder.glob(f"{_SET}-*-base.json")):
                stored = _read(file)
                if stored and _lacks_weights_only(files, stored.files):
                    return stored.files
        return None


def _lacks_weights_only(files: Manifest, complete: Manifest) -> bool:
    missing = complete.keys() - files.keys()
    return files.items() <= complete.items() and all(".safetensors" in name for name in missing)


def _name(files: Manifest, adapter: str | None) -> str:
    return f"{_SET}-{digest(files)[:16]}-{adapter[:16] if adapter else 'base'}.json"


def _read(file: Path) -> _Stored | None:
    try:
        return TypeAdapter(_Stored).validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{file} is damaged ({error}); remove it") from None


def _draw(view: _View) -> Image.Image:
    """A tower with windows on grass; by plain arithmetic, so that no drawing library can change a pixel."""
    pixels = np.empty((224, 168, 3), dtype=np.uint8)
    pixels[:160], pixels[160:] = _SKY, _GRASS
    pixels[40:180, 60:108] = view.colour
    for number in range(view.windows):
        top = 50 + 24 * number
        pixels[top : top + 12, 78:90] = (250, 240, 170)
    return Image.fromarray(pixels)
