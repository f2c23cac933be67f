"""Labelled questions that a few steps of training are enough to learn: the red picture is the relevant one."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from sqlalchemy import Connection, Engine, select

from ragllava.feedback import Label, Verdict
from ragllava.models import profiles
from ragllava.records import Answer, AnswerStatus, Candidate, StoredImage
from ragllava.settings import Settings
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.answer.submit import Submission, submit_questions
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import answers
from ragllava.stores.learning import labels
from ragllava.stores.schema import images

MINI = Path(profiles.__file__).parent / "mini"
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
SHEETS = 8  # of each color: questions about one picture alone would prove nothing to the gate


def tiny_profile(folder: Path) -> str:
    """RAGLLAVA_PROFILE of the mini CLIP beside a random LLaVA of a few thousand parameters, which learns in seconds."""
    from tests.support.tiny_checkpoints import save_family

    save_family("llava", folder / "llava")
    (folder / "tiny.toml").write_text(f'retriever = "local-dir:{MINI / "clip"}"\nmllm = "{folder / "llava"}"\n')
    return str(folder / "tiny.toml")


def sheet(color: str, number: int) -> str:
    """The file name of a picture: `red.png`, `red-1.png`, …"""
    return f"{color}-{number}.png" if number else f"{color}.png"


def draw_sheet(color: str, number: int) -> Image.Image:
    """A picture of this color with dark squares: without, sheets would be near-duplicates, which count as one."""
    rgb = COLORS[color]
    picture = Image.new("RGB", (64, 64), rgb)
    for place in random.Random(number).sample(range(16), 5):
        left, top = 16 * (place % 4), 16 * (place // 4)
        picture.paste(tuple(level // 2 for level in rgb), (left, top, left + 16, top + 16))
    return picture


@dataclass(frozen=True)
class Classroom:
    """An archive with a few pictures of each color, and questions whose answers people have labelled."""

    engine: Engine
    settings: Settings
    archive_name: str = "class"

    def draw(self, folder: Path) -> Path:
        """The pictures as files, with their captions beside them; ingest this folder first."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["file,caption"]
        for color in COLORS:
            for number in range(SHEETS):
                draw_sheet(color, number).save(folder / sheet(color, number))
                lines.append(f"{sheet(color, number)},A {color} sheet")
        (folder / "captions.csv").write_text("\n".join(lines))
        return folder

    def label(self, count: int, relevance: float = 0.5, *, wanted: str = "red") -> int:
        """Ask so many questions, answer them with a picture of each color, and label those; returns the answer job."""
        texts = [{"custom_id": f"q{n}", "question": f"Which sheet belongs to number {n}?"} for n in range(count)]
        file = read_questions("\n".join(map(json.dumps, texts)).encode(), name="q.jsonl")
        job_id = in_transaction(
            self.engine, submit_questions, self.settings, file, Submission(self.archive_name)
        ).job_id
        with self.engine.begin() as connection:
            by_source = self._images(connection)
            given, said = [], []
            for n in range(count):
                shown = [by_source[sheet(color, n % SHEETS)] for color in sorted(COLORS)]
                found = [
                    Candidate(image, rank, 0.5, relevance, 0 if rank == 0 else None) for rank, image in enumerate(shown)
                ]
                given.append(Answer(n, AnswerStatus.ANSWERED, "blue", 0.5, tuple(found)))
                right = (by_source[sheet(wanted, n % SHEETS)].image_id,)
                said.append(Label(job_id, n, Verdict.WRONG, wanted, right, (), "person"))
            answers.insert_answers(connection, job_id, 1, 1, 1, given)
            labels.insert_labels(connection, said)
        return job_id

    def _images(self, connection: Connection) -> dict[str, StoredImage]:
        archive_id = archive.get_archive(connection, self.archive_name).archive_id
        rows = connection.execute(select(images).where(images.c.archive_id == archive_id).order_by(images.c.source))
        return {row.source: StoredImage(row.id, row.sha256, row.source, row.caption) for row in rows}
