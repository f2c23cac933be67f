"""Data sets for both roles, from labelled questions and the images that retrieval found for them (docs/method.md 5, 6).

Every draw depends on the seed and on the question's text alone: a question keeps its negatives when others join the
set. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ragllava.errors import UsageError
from ragllava.json_records import from_json, to_json
from ragllava.records import Role
from ragllava.training.data.examples import AnswerExample, Evidence, Example, RankExample, inject_wrong_image
from ragllava.whole_files import write_whole

LABELLED = "labelled"
_EXAMPLES_FILE = "examples.jsonl"
_CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class Retrieved:
    """An image that retrieval found; `relevance` is P("Yes") of the reranker of today, None where it was not asked."""

    image: str
    caption: str | None
    relevance: float | None = None


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """A question with what people said about it, and what retrieval finds for it, best first.

    `answer` None trains the reranker only. `irrelevant` are images that a person called wrong.
    """

    text: str
    answer: str | None
    relevant: tuple[Evidence, ...]
    retrieved: tuple[Retrieved, ...]
    irrelevant: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """How a set is made. `ratio` is hard negatives for each positive (ranking).

    `bare_share` of the ranking examples show no caption, so that a model that learns to read captions does not unlearn
    to look. Answers: each question gives `draws` examples, each with pictures in an order of its own. `injected_share`
    of the examples show wrong pictures as well, which are drawn for each: from one to as many as leave no more than
    `pictures_shown` in the prompt; none where the right ones are as many. Unlabelled images that the reranker gives at
    least `certain` are not trained on: they may be relevant without a label.
    """

    seed: int
    top_k: int = 20
    ratio: float = 1.0
    injected_share: float = 1.0
    draws: int = 1
    pictures_shown: int = 2
    certain: float = 0.9
    bare_share: float = 0.0

    @property
    def source(self) -> str:
        """Where hard negatives come from, as written into examples."""
        return f"clip-top-{self.top_k}"


@dataclass(frozen=True, slots=True)
class SetAside:
    """An unlabelled image that looks relevant: it needs a label."""

    question: str
    image: str
    caption: str | None
    relevance: float


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """What a data set is made of; stored beside it. `snapshot` is the hash of its examples."""

    role: Role
    snapshot: str
    options: DatasetOptions
    questions: int
    examples: int
    positives: int  # relevant pairs; for answers, examples without a wrong picture
    negatives: int  # irrelevant pairs; for answers, examples with a wrong picture
    set_aside: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one role in the order of their snapshot, the card, and what waits for review."""

    examples: tuple[Example, ...]
    card: DatasetCard
    set_aside: tuple[SetAside, ...] = ()


def build_rank_dataset(questions: Sequence[LabelledQuestion], options: DatasetOptions) -> Dataset:
    """Positives are the labelled images; negatives those a person called wrong, and hard ones up to the ratio."""
    return _build(Role.RERANKER, merge_questions(questions), options, _rank_examples)


def build_answer_dataset(questions: Sequence[LabelledQuestion], options: DatasetOptions) -> Dataset:
    """Examples for each question with an answer and a labelled image, with wrong pictures where there is room."""
    usable = [question for question in merge_questions(questions) if question.answer and question.relevant]
    return _build(Role.GENERATOR, usable, options, _answer_examples)


def merge_questions(questions: Iterable[LabelledQuestion]) -> list[LabelledQuestion]:
    """One entry for each text, in order of first appearance, with all labels; no image of it is both.

    `questions` come in the order in which they were labelled: the last answer given counts, and the last word on an
    image. Who calls an image both at once means relevant.
    """
    merged: dict[str, LabelledQuestion] = {}
    for question in questions:
        key = question_key(question.text)
        newer = replace(question, irrelevant=_without(question.irrelevant, question.relevant))
        older = merged.get(key)
        if older is not None:
            newer = replace(
                older,
                answer=newer.answer or older.answer,
                relevant=_unique([*_without(older.relevant, newer.irrelevant), *newer.relevant]),
                irrelevant=_unique([*_without(older.irrelevant, newer.relevant), *newer.irrelevant]),
                retrieved=newer.retrieved or older.retrieved,
            )
        merged[key] = newer
    return list(merged.values())


def side_key(text: str) -> str:
    """Texts that differ only in case, spacing, punctuation and the form of letters are on one side of a split."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) or question_key(text)


def is_held_out(text: str, share: float) -> bool:
    """Whether a text or an image's name is in the held-out `share` (0 to 1); a larger share holds all of a smaller one.

    It follows from the text alone, so the same never stands on both sides, ever.
    """
    number = int.from_bytes(hashlib.sha256(question_key(text).encode()).digest()[:8])
    return number < share * 2**64


def is_judging(text: str, images: Iterable[str], share: float) -> bool:
    """Whether a question about these relevant images belongs to the `share` (0 to 1) that versions are evaluated on.

    One image that is held out is enough. So nothing that is trained on has such an image as relevant, and what is
    measured holds for pictures without a label. A question without images is assigned by its text.
    """
    return any(is_held_out(key, share) for key in list(images) or [text])


def question_key(text: str) -> str:
    """Texts that differ only in case and spacing are one question."""
    return " ".join(text.casefold().split())


def question_rng(seed: int, text: str) -> random.Random:
    """Random numbers that depend on the seed and the question's text alone."""
    return random.Random(f"{seed}:{question_key(text)}")  # noqa: S311 - a draw of examples, no secret


def snapshot_id(examples: Iterable[Example]) -> str:
    """The sha256 (hex) of the examples' content, whatever their order."""
    return hashlib.sha256(_canonical(examples)).hexdigest()


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Write `examples.jsonl`, then `card.json`, which marks the snapshot as complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _EXAMPLES_FILE).write_bytes(_canonical(dataset.examples))
    card = to_json(dataset.card) | {"review": to_json(dataset.set_aside)}
    write_whole(folder / _CARD_FILE, json.dumps(card, indent=1, ensure_ascii=False))


def read_dataset(folder: Path) -> Dataset:
    """Read what `write_dataset` wrote. Raises UsageError when it is missing, incomplete or changed."""
    try:
        card = json.loads((folder / _CARD_FILE).read_text(encoding="utf-8"))
        content = (folder / _EXAMPLES_FILE).read_bytes()
    except OSError as error:
        raise UsageError(f"{folder}: no complete data set here ({error.strerror}: {error.filename})") from None
    if hashlib.sha256(content).hexdigest() != card["snapshot"]:
        raise UsageError(f"{folder / _EXAMPLES_FILE}: its content is not the snapshot of its card; build the set again")
    form: type[Example] = RankExample if card["role"] == Role.RERANKER else AnswerExample
    examples = tuple(from_json(form, json.loads(line)) for line in content.splitlines())
    return Dataset(examples, from_json(DatasetCard, card), from_json(tuple[SetAside, ...], card["review"]))


def _hard_negatives(question: LabelledQuestion, options: DatasetOptions) -> tuple[list[Evidence], list[SetAside]]:
    """Unlabelled images of the top K: those to train on, and those that are too likely right."""
    labelled = {evidence.image for evidence in (*question.relevant, *question.irrelevant)}
    hard: list[Evidence] = []
    uncertain: list[SetAside] = []
    for item in question.retrieved[: options.top_k]:
        if item.image in labelled:
            continue
        labelled.add(item.image)
        if item.relevance is not None and item.relevance >= options.certain:
            uncertain.append(SetAside(question.text, item.image, item.caption, item.relevance))
        else:
            hard.append(Evidence(item.image, item.caption))
    return hard, uncertain


def _rank_examples(
    question: LabelledQuestion, hard: list[Evidence], options: DatasetOptions, rng: random.Random
) -> list[Example]:
    wanted = _round_by_chance(options.ratio * len(question.relevant), rng)
    drawn = rng.sample(hard, min(wanted, len(hard)))

    def pair(item: Evidence, source: str, *, relevant: bool) -> RankExample:
        # Drawn independently, so that a larger share takes the captions of the same examples and more.
        chance = question_rng(options.seed, f"{question.text}:{item.image}:bare").random()
        caption = None if chance < options.bare_share else item.caption
        return RankExample(question.text, caption, item.image, relevant, source)

    return [
        *(pair(item, LABELLED, relevant=True) for item in question.relevant),
        *(pair(item, LABELLED, relevant=False) for item in question.irrelevant),
        *(pair(item, options.source, relevant=False) for item in drawn),
    ]


def _answer_examples(
    question: LabelledQuestion, hard: list[Evidence], options: DatasetOptions, rng: random.Random
) -> list[Example]:
    wrong = [*question.irrelevant, *hard]
    # Each draw has random numbers of its own, so that no share and no number of draws changes what another one draws.
    return [
        _answer_example(question, wrong, options, random.Random(rng.getrandbits(64)))  # noqa: S311
        for _ in range(options.draws)
    ]


def _answer_example(
    question: LabelledQuestion, wrong: Sequence[Evidence], options: DatasetOptions, rng: random.Random
) -> AnswerExample:
    # Drawn for each question alike, so that a larger share injects into the same examples and more.
    chosen = rng.random() < options.injected_share
    # Answering meets pictures in the order of their rank; so a place must tell nothing.
    evidence = rng.sample(question.relevant, len(question.relevant))
    captions, images = tuple(item.caption for item in evidence), tuple(item.image for item in evidence)
    example = AnswerExample(question.text, captions, images, question.answer or "")
    most = min(options.pictures_shown - len(question.relevant), len(wrong))
    for item in rng.sample(wrong, rng.randint(1, most)) if chosen and most > 0 else ():
        example = inject_wrong_image(example, item, rng)
    return example


def _build(
    role: Role,
    questions: Sequence[LabelledQuestion],
    options: DatasetOptions,
    make: Callable[[LabelledQuestion, list[Evidence], DatasetOptions, random.Random], list[Example]],
) -> Dataset:
    """`make` turns a question and its hard negatives into examples."""
    examples: list[Example] = []
    set_aside: list[SetAside] = []
    for question in questions:
        hard, uncertain = _hard_negatives(question, options)
        set_aside += uncertain
        examples += make(question, hard, options, question_rng(options.seed, question.text))
    ordered = tuple(sorted(examples, key=_line))
    negatives = sum(_is_negative(example) for example in ordered)
    card = DatasetCard(
        role=role,
        snapshot=snapshot_id(ordered),
        options=options,
        questions=len(questions),
        examples=len(ordered),
        positives=len(ordered) - negatives,
        negatives=negatives,
        set_aside=len(set_aside),
    )
    return Dataset(ordered, card, tuple(set_aside))


def _is_negative(example: Example) -> bool:
    return not example.relevant if isinstance(example, RankExample) else example.injected


def _without(items: Iterable[Evidence], others: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """The items whose image is not among the others'."""
    names = {item.image for item in others}
    return tuple(item for item in items if item.image not in names)


def _unique(items: Iterable[Evidence]) -> tuple[Evidence, ...]:
    return tuple({item.image: item for item in items}.values())


def _round_by_chance(value: float, rng: random.Random) -> int:
    """A whole number whose mean is `value`: 0.5 negatives a question are one for every second question."""
    fraction, floor = math.modf(value)
    return int(floor) + (rng.random() < fraction)


def _line(example: Example) -> str:
    return json.dumps(asdict(example), ensure_ascii=False, sort_keys=True)


def _canonical(examples: Iterable[Example]) -> bytes:
    """The same bytes for the same examples, in whatever order they were made."""
    return "".join(f"{line}\n" for line in sorted(map(_line, examples))).encode()
