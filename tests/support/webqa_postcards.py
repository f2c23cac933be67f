"""Postcards in the form of WebQA's download: questions in WebQA_train_val.json, pictures in imgs.tsv.

`python -m tests.support.webqa_postcards FOLDER --seed 51 --style name` draws such a set for `ragllava eval webqa`.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

from ragllava.postcards.archive import KnownQuestion, PostcardArchive, draw_archive
from ragllava.postcards.postcard import Postcard
from ragllava.postcards.questions import QuestionStyle

FIRST_ID = 30_000_000
# WebQA's categories; what has no category of its own is scored by all its words.
_CATEGORIES = {"color": "color", "count": "number", "roof": "shape", "isthere": "YesNo", "samecolor": "YesNo"}


def write_webqa(folder: Path, archive: PostcardArchive) -> None:
    """Write the archive as WebQA's split val.

    Each question names its own pictures as right and some of the others as wrong, so that together the questions name
    all of them: the pool is every picture that a question names.
    """
    ids = {card.file_name: FIRST_ID + row for row, card in enumerate(archive.postcards)}
    entries: dict[str, Any] = {}
    for number, question in enumerate(archive.questions):
        wrong = archive.postcards[number :: len(archive.questions)]
        right = [card for card in archive.postcards if card.file_name in question.relevant]
        entries[question.custom_id] = {
            "Q": f'"{question.text}"',
            "A": [f'"{_sentence(question)}"'],
            "split": "val",
            "Qcate": _CATEGORIES.get(question.type, "Others"),
            "Guid": question.custom_id,
            "img_posFacts": [_fact(card, ids[card.file_name]) for card in right],
            "img_negFacts": [_fact(card, ids[card.file_name]) for card in wrong if card not in right],
            "txt_posFacts": [],
            "txt_negFacts": [],
        }
    (folder / "WebQA_train_val.json").write_text(json.dumps(entries))
    offsets = []
    with (folder / "imgs.tsv").open("wb") as table:
        for card in archive.postcards:
            offsets.append(table.tell())
            table.write(b"%d\t%s\n" % (ids[card.file_name], base64.b64encode(card.png())))
    (folder / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


def _fact(card: Postcard, image_id: int) -> dict[str, Any]:
    return {"image_id": image_id, "title": card.landmark.entity.name, "caption": card.caption}


def _sentence(question: KnownQuestion) -> str:
    """The answer alone where all of its words are scored."""
    return question.answer if question.type not in _CATEGORIES else f"The answer is {question.answer}."


def main() -> None:
    """Draw a set into a new folder: 1,000 pictures and 300 questions, unless options say otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--style", type=QuestionStyle, choices=list(QuestionStyle), default=QuestionStyle.NAME)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=300)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    write_webqa(given.folder, draw_archive(given.seed, given.images, given.questions, style=given.style))


if __name__ == "__main__":
    main()
