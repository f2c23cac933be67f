"""Postcards in the form of WebQA's download: questions in WebQA_train_val.json, pictures in imgs.tsv."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from ragllava.postcards.archive import KnownQuestion, PostcardArchive
from ragllava.postcards.postcard import Postcard

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
