"""An archive of images with metadata and vectors, without any picture; and filters applied the slow and obvious way."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from ragllava.filters import Condition, Filter, Value, conditions
from ragllava.stores.archives import archive

Described = tuple[str, str | None, dict[str, Any] | None]  # source, caption, metadata


def store_described(connection: Connection, rows: Sequence[Described], archive_name: str = "cards") -> list[int]:
    """Images of an archive with these sources, captions and metadata; their ids."""
    archive_id = archive.ensure_archive(connection, archive_name).archive_id
    listed = [{"source": source, "caption": caption, "metadata": known} for source, caption, known in rows]
    statement = text("""
        WITH given AS (
            SELECT number, row ->> 'source' AS source, row ->> 'caption' AS caption,
                   nullif(row -> 'metadata', 'null') AS metadata, :archive || '-' || number AS sha256
            FROM jsonb_array_elements(CAST(:rows AS jsonb)) WITH ORDINALITY AS given (row, number)
        ), new AS (
            INSERT INTO blobs (sha256, state, size_bytes, media_type) SELECT sha256, 'live', 1, 'image/png' FROM given
            RETURNING sha256
        )
        INSERT INTO images (archive_id, sha256, source, uri, caption, metadata, width, height, media_type)
        SELECT :archive_id, sha256, source, 'file:///' || source, caption, metadata, 1, 1, 'image/png'
        FROM new JOIN given USING (sha256) ORDER BY number
        RETURNING id, source
    """)
    values = {"rows": json.dumps(listed), "archive": archive_name, "archive_id": archive_id}
    ids = {source: image_id for image_id, source in connection.execute(statement, values)}
    return [ids[source] for source, _, _ in rows]


def random_images(count: int, seed: int) -> list[Described]:
    """Images with metadata of every kind, also such as nobody would write."""
    chance = random.Random(seed)
    cities = ["Port Ansel", "PORT ANSEL", "Köln", "Ko\u0308ln", "koln", "Москва", "true", "1968", "", "-"]
    years: list[Any] = [1950, 1968, "1968", "1968.0", "1969", 1969.5, -3, "n.d.", "19680", True, 1e300, "007"]
    taken = ["1968", "1968-05", "1968-05-12", "1968-05-12 10:30", "1968-05-12T10:30:00+02:00", "1967-12-31", "May 1968"]
    rows: list[Described] = []
    for number in range(count):
        known: dict[str, Any] = {}
        if chance.random() < 0.8:
            known["city"] = chance.choice([city for city in cities if city])
        if chance.random() < 0.8:
            known["year"] = chance.choice(years)
        if chance.random() < 0.6:
            known["taken"] = chance.choice(taken)
        if chance.random() < 0.5:
            known["tags"] = chance.sample(
                ["barn", "Boat", "1968", 1968, True, "Köln", "1968-05-12"], chance.randint(1, 3)
            )
        folder = chance.choice(["", "1968/", "1968/holshire/", "1968/Hölshire/", "1968b/", "deep/1968/"])
        caption = chance.choice([None, "A barn", "A BÂRN in Köln", "1968", "boats"])
        rows.append((f"{folder}{number}.png", caption, known or None))
    return rows


def fulfils(row: Described, checked: Filter) -> bool:
    """Whether all conditions hold."""
    return all(_holds(row, condition) for condition in conditions(checked))


def _holds(row: Described, condition: Condition) -> bool:
    source, caption, known = row
    if condition.key == "folder":
        if condition.is_absent:
            return "/" not in source
        return any(_folded(source).startswith(_folded(value.text)) for value in condition.any_of)
    value = {"source": source, "caption": caption, **(known or {})}.get(condition.key)
    if condition.is_absent or value is None:
        return condition.is_absent and value is None
    members = [_written(member) for member in (value if isinstance(value, list) else [value])]
    is_field = condition.key in ("source", "caption")

    def equals(wanted: Value) -> bool:
        if is_field or (wanted.number is None and wanted.date is None):
            return any(_folded(member) == _folded(wanted.text) for member in members)
        return any(_compares(member, {"from": wanted, "to": wanted}) for member in members)

    return (
        (not condition.any_of or any(map(equals, condition.any_of)))
        and all(map(equals, condition.all_of))
        and (not condition.bounds or any(_compares(member, dict(condition.bounds)) for member in members))
        and all(any(_folded(part) in _folded(member) for member in members) for part in condition.contains)
    )


def _compares(member: str, bounds: dict[str, Value]) -> bool:
    if all(bound.number is not None for bound in bounds.values()) and re.fullmatch(r"-?\d{1,30}(\.\d{1,30})?", member):
        number = float(member)
        pairs = [(operator, number, float(bound.number or "")) for operator, bound in bounds.items()]
    elif all(bound.date is not None for bound in bounds.values()) and re.fullmatch(
        r"\d{4}(-\d\d(-\d\d([T ]\d\d:\d\d.*)?)?)?", member
    ):
        moment = member.replace(" ", "T")
        dates = [(operator, moment[: len(bound.date or "")], bound.date or "") for operator, bound in bounds.items()]
        return all(_in_order(*pair) for pair in dates)
    else:
        return False
    return all(_in_order(*pair) for pair in pairs)


def _in_order(operator: str, value: Any, bound: Any) -> bool:
    tests = {"from": value >= bound, "to": value <= bound, "above": value > bound, "below": value < bound}
    return bool(tests[operator])


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _folded(value: str) -> str:
    decomposed = unicodedata.normalize("NFD", value).lower()
    return "".join(letter for letter in decomposed if not "\u0300" <= letter <= "\u036f")
