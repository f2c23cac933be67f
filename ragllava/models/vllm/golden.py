"""Golden pairs: drawn pictures and questions whose scores tell whether two backends compute the same.

What the weights themselves give for them is kept under `<home>/cache/golden`, one file for a base and one for each
adapter. A machine that lacks the weights can take those files from one that has them (RAGLLAVA_VLLM_GOLDEN_DIR).
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import Manifest, digest
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.reranker import Pair, Reranker
from ragllava.settings import Settings

log = logging.getLogger(__name__)

_SET = "golden-1"  # change a picture or a text below, and change this
_ANSWER_TOKENS = 8
_SURE = 0.6  # below it two words may be almost as likely, and rounding decides between them
_SKY, _GRASS = (150, 190, 230), (90, 140, 80)


@dataclass(frozen=True, slots=True)
class _View:
    caption: str
    question: str
    colour: tuple[int, int, int]
    windows: int


# A base that can read, and the mini models, tell whose caption is asked about. Odd letters and blanks, because a
# template that loses one is a common reason for wrong scores.
_VIEWS = (
    _View("Harlow Lighthouse, Port Ansel, 1932", "What color is the Harlow Lighthouse?", (190, 40, 40), 3),
    _View("Fenwick Tower, Port Wexley, 1948", "How many windows does the Fenwick Tower have?", (60, 80, 180), 5),
    _View("  Château d'Été —\nWenby, 1911", "Is the “Château d'Été”  in Wenby yellow?\n", (220, 190, 60), 2),
    _View("Marstead Temple, Wenby, 1938", "What shape is the roof of the Marstead Temple?", (120, 70, 140), 4),
)


@dataclass(frozen=True, slots=True)
class GoldenAnswer:
    """An answer, how many pictures it rests on, and its confidence."""

    text: str
    confidence: float
    pictures: int


@dataclass(frozen=True, slots=True)
class GoldenScores:
    """What one model gives for the golden pairs and requests, in their order."""

    relevances: list[float]
    answers: list[GoldenAnswer]


@dataclass(frozen=True, slots=True)
class Parity:
    """How well two backends agree: the largest difference of a relevance, beside the range that they cover."""

    largest: float
    lowest: float
    highest: float
    pairs: int

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.pairs} golden relevances from {self.lowest:.3f} to {self.highest:.3f} differ by {self.largest:.1e}"
        )


def golden_pairs() -> list[Pair]:
    """Each picture with its own question and with another's, two without captions, one searched by a caption."""
    pictures = [_draw(view) for view in _VIEWS]
    pairs = []
    for number, (view, picture) in enumerate(zip(_VIEWS, pictures, strict=True)):
        other = _VIEWS[number - 1]
        pairs += [Pair(view.question, view.caption, picture), Pair(other.question, view.caption, picture)]
    pairs += [Pair(view.question, None, picture) for view, picture in zip(_VIEWS[:2], pictures, strict=False)]
    return [*pairs, Pair("A red lighthouse on grass .", None, pictures[0], by_caption=True)]


def golden_requests(top_n: int) -> list[AnswerRequest]:
    """Questions about one picture, and where answers may rest on several, one about two."""
    pictures = [_draw(view) for view in _VIEWS]
    one = [
        AnswerRequest(view.question, (view.caption,), (picture,))
        for view, picture in zip(_VIEWS, pictures, strict=True)
    ]
    two = AnswerRequest(
        "Which is older, the Harlow Lighthouse or the Fenwick Tower?",
        (_VIEWS[0].caption, _VIEWS[1].caption),
        (pictures[0], pictures[1]),
    )
    return [*one, two] if top_n > 1 else one


def score_golden(reranker: Reranker, generator: Generator, top_n: int = 2) -> GoldenScores:
    """What the two give. Raises what they raise."""
    requests = golden_requests(top_n)
    answers = generator.answer(requests, max_tokens=_ANSWER_TOKENS, with_captions=True, batch_size=1)
    return GoldenScores(
        [score.value for score in reranker.relevance(golden_pairs(), batch_size=1)],
        [
            GoldenAnswer(answer.text, answer.confidence, len(request.pictures))
            for request, answer in zip(requests, answers, strict=True)
        ],
    )


def compare(expected: GoldenScores, found: GoldenScores, tolerance: float) -> Parity:
    """How far `found` is from `expected`. Raises ModelUnavailable with the first difference above the tolerance.

    Another answer counts where the expected one was given with confidence.
    """
    for number, (right, other) in enumerate(zip(expected.relevances, found.relevances, strict=True), 1):
        if abs(right - other) > tolerance:
            raise ModelUnavailable(f"golden pair {number} scores {other:.4f} there, and {right:.4f} by the weights")
    # Where answers rest on one picture, `found` lacks the last, which is about two.
    for answer, given in zip(expected.answers, found.answers, strict=False):
        same = answer.text == given.text
        if (same and abs(answer.confidence - given.confidence) > tolerance) or (not same and answer.confidence > _SURE):
            raise ModelUnavailable(
                f"a golden question is answered {given.text!r} ({given.confidence:.4f}) there, and {answer.text!r} "
                f"({answer.confidence:.4f}) by the weights"
            )
    largest = max(abs(right - other) for right, other in zip(expected.relevances, found.relevances, strict=True))
    return Parity(largest, min(expected.relevances), max(expected.relevances), len(expected.relevances))


class GoldenFiles:
    """The golden scores that are known on this machine."""

    def __init__(self, settings: Settings) -> None:
        """Reads and writes nothing yet."""
        self.home = settings.home / "cache" / "golden"
        self._folders = [folder for folder in (settings.vllm_golden_dir, self.home) if folder is not None]

    def find(self, files: Manifest, adapter: str | None) -> GoldenScores | None:
        """Those of a base, by its files, or of an adapter on it, by its digest."""
        for folder in self._folders:
            found = _read(folder / _name(files, adapter))
            if found is not None:
                return found[1]
        return None

    def keep(self, files: Manifest, adapter: str | None, scores: GoldenScores) -> None:
        """Write them down. A folder that cannot be written is no error: they are computed again."""
        target = self.home / _name(files, adapter)
        aside = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({"files": files, "adapter": adapter, "scores": asdict(scores)}, indent=1))
            aside.replace(target)
        except OSError as error:
            log.info("golden scores not kept", extra={"action": "golden_not_kept", "reason": str(error)})

    def complete(self, files: Manifest) -> Manifest | None:
        """All files of the base of which `files` are those beside the weights, with their hashes; None: not known."""
        for folder in self._folders:
            for file in sorted(folder.glob(f"{_SET}-*-base.json")):
                known = _read(file)
                if known is not None and _lacks_weights_only(files, known[0]):
                    return known[0]
        return None


def _lacks_weights_only(files: Manifest, whole: Manifest) -> bool:
    lacking = whole.keys() - files.keys()
    return files.items() <= whole.items() and all(".safetensors" in name for name in lacking)


def _name(files: Manifest, adapter: str | None) -> str:
    return f"{_SET}-{digest(files)[:16]}-{adapter[:16] if adapter else 'base'}.json"


def _read(file: Path) -> tuple[Manifest, GoldenScores] | None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        scores = stored["scores"]
        answers = [GoldenAnswer(**answer) for answer in scores["answers"]]
        relevances = [float(value) for value in scores["relevances"]]
        return dict(stored["files"]), GoldenScores(relevances, answers)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"{file} is damaged ({error}); remove it") from None


def _draw(view: _View) -> Image.Image:
    """A tower with windows on grass; plain arithmetic, so that no drawing library can change a pixel."""
    pixels = np.empty((224, 168, 3), dtype=np.uint8)
    pixels[:160], pixels[160:] = _SKY, _GRASS
    pixels[40:180, 60:108] = view.colour
    for number in range(view.windows):
        top = 50 + 24 * number
        pixels[top : top + 12, 78:90] = (250, 240, 170)
    return Image.fromarray(pixels)
