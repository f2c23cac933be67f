"""The whole first stage, by picture and by caption, compared with the picture search alone.

Every image has a caption in the form of a postcard's and a vector that is mixed from those of drawn postcards. The
questions name a thing, as people ask.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection, text

from ragllava.json_records import to_json
from ragllava.lab.bench.mixed_archive import MixedArchive, mixed_vectors, new_image, store_archive
from ragllava.lab.bench.rows import BenchRow, Wanted, compare
from ragllava.lab.bench.workload import Workload
from ragllava.postcards.names import Landmark, sample_attributes, sample_entity
from ragllava.records import AnswerOptions, Question, Retrieval
from ragllava.stages.answer.candidates import find_candidates
from ragllava.stages.answer.tools import AnswerTools, prepare
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction, read_at_once

_BULK = 64  # questions that are searched together
_ASKED = 192
_NOTE = "vectors mixed from those of drawn postcards; captions drawn; the questions name a thing and its city"


@dataclass(frozen=True)
class _Captioned:
    archive: MixedArchive
    questions: tuple[Question, ...]
    asked_about: tuple[str, ...]  # the source of the image that each question names


def first_stage_rows(workload: Workload) -> list[BenchRow]:
    """Many questions together, then a single one."""
    client = workload.require_client()
    captioned = _create(workload)
    resources = Resources(client.settings)
    resources.models = workload.models
    archive_id = in_transaction(client.engine, archive.get_archive, captioned.archive.name).archive_id
    options = AnswerOptions(client.settings.top_k)
    hybrid = prepare(client.engine, client.settings, resources, archive_id, to_json(options), only_retrieve=True)
    picture = replace(hybrid, options=replace(options, retrieval=Retrieval.PICTURE))
    figures = in_transaction(client.engine, _sizes) | {
        "recall_by_caption": _recall(captioned, hybrid),
        "recall_by_picture": _recall(captioned, picture),
        "has_graph": float(captioned.archive.has_graph),
    }
    rows = []
    for number, label in ((_BULK, f"{_BULK} questions"), (1, "one question")):
        name = f"first stage, {workload.vectors:,} captions, {label}"
        workload.progress(name)
        asked = captioned.questions[:number]
        speeds = compare(partial(_run, asked, hybrid), partial(_run, asked, picture))
        times = {"ms_a_question": 1000 / speeds.ours_per_s, "ms_of_reference": 1000 / speeds.reference_per_s}
        rows.append(
            BenchRow(
                "captions", name, "the nearest pictures alone", "questions/s", speeds.ours_per_s,
                speeds.reference_per_s, Wanted(at_least=0.5), times | figures, _NOTE,
            )
        )  # fmt: skip
    resources.close()
    return rows


def _create(workload: Workload) -> _Captioned:
    client, rng = workload.require_client(), random.Random(workload.seed)  # noqa: S311 - repeatable on purpose
    workload.progress(f"captions: creating an archive of {workload.vectors:,} images")
    landmarks = [Landmark(sample_attributes(rng), sample_entity(rng, "train")) for _ in range(workload.vectors)]
    images = []
    for row, landmark in enumerate(landmarks):
        sha256 = hashlib.sha256(f"captioned {workload.vectors} {row}".encode()).hexdigest()
        images.append(new_image(row, sha256, landmark.caption))
    mixed = mixed_vectors(workload, len(images))
    stored = store_archive(
        client.engine, f"bench-captions-{len(images)}", workload.models.retriever.version, images, mixed
    )
    asked = rng.sample(range(len(images)), min(_ASKED, len(images)))
    questions = (
        Question(number, number + 1, str(number), f"What color is the {land.title} in {land.entity.city}?")
        for number, land in enumerate(landmarks[row] for row in asked)
    )
    return _Captioned(stored, tuple(questions), tuple(images[row].source for row in asked))


def _recall(captioned: _Captioned, tools: AnswerTools) -> float:
    """The share of the questions whose image is a candidate."""
    engine, found = tools.engine, 0
    for start in range(0, len(captioned.questions), _BULK):
        part = slice(start, start + _BULK)
        rows = find_candidates(captioned.questions[part], tools)
        ids = sorted({hit.image_id for row in rows for hit in row})
        images = read_at_once(engine, archive.load_images, ids)
        for source, row in zip(captioned.asked_about[part], rows, strict=True):
            found += source in {images[hit.image_id].source for hit in row}
    return found / len(captioned.questions)


def _run(questions: Sequence[Question], tools: AnswerTools) -> list[float]:
    find_candidates(questions, tools)
    return [0.0] * len(questions)  # the results differ; their recall is a figure of the row


def _sizes(connection: Connection) -> dict[str, float]:
    """What the words take on disk, with their indexes."""
    query = "SELECT pg_total_relation_size(CAST(:name AS regclass)) / 1048576.0"
    tables = ("image_words", "word_counts", "vocabulary")
    return {f"{name}_mib": float(connection.scalar(text(query), {"name": name}) or 0) for name in tables}
