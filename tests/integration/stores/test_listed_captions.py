"""The rows of caption files in the database give what the whole file gives, and cost one lookup for each picture."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, event, text

from ragllava.stages.ingest.captions import Captions, Description, merge_descriptions
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings, bound_objects, listed_captions, listings
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import ObjectKind, ObjectState
from ragllava.stores.buckets.listed_captions import ListedCaption
from ragllava.stores.buckets.listings import ListedObject

FILE = "in/captions.csv"


@pytest.fixture
def binding(connection: Connection) -> Binding:
    archive_id = archive.ensure_archive(connection, "test").archive_id
    return bindings.bind(connection, archive_id, BindingRole.PICTURES, "bucket", "in/", {})


def merged(parts: Sequence[ListedCaption]) -> ListedCaption:
    both = merge_descriptions(Description(part.caption, part.metadata) for part in parts)
    return ListedCaption(both.caption, both.metadata)


def put_pictures(connection: Connection, binding: Binding, names: Sequence[str]) -> list[str]:
    keys = [f"in/{name}" for name in names]
    bound_objects.save_objects(connection, binding, [ObjectState(key, ObjectKind.PICTURE, "e", 1) for key in keys])
    return keys


def put_captions(connection: Connection, binding: Binding, rows: Sequence[tuple[str, str]], file: str = FILE) -> int:
    listed = ((name, ListedCaption(caption, None)) for name, caption in rows)
    return listed_captions.replace_file(connection, binding.binding_id, file, listed, merged)


@pytest.mark.parametrize("seed", range(12))
def test_the_lookup_gives_what_the_whole_file_gives(connection: Connection, binding: Binding, seed: int) -> None:
    chance = random.Random(seed)
    folders, bases = ("", "a/", "b/", "a/c/"), [f"{number}.png" for number in range(8)]
    every = [f"{folder}{base}" for folder in folders for base in bases]
    pictures = chance.sample(every, chance.randint(1, 20))
    rows = [(name, f"caption {number}") for number, name in enumerate(chance.choices(every, k=chance.randint(0, 25)))]
    keys = put_pictures(connection, binding, pictures)
    put_captions(connection, binding, rows)
    found = listed_captions.captions_of(connection, binding.binding_id, keys)
    whole: dict[str, str] = {}
    for name, caption in rows:
        whole[name] = f"{whole[name]} {caption}" if name in whole else caption
    expected = dict(zip(keys, Captions(whole).assign(pictures), strict=True))
    assert {key: found[key].caption if key in found else None for key in keys} == {
        key: description.caption for key, description in expected.items()
    }


def test_only_pictures_whose_row_changed_are_due(connection: Connection, binding: Binding) -> None:
    put_pictures(connection, binding, [f"{number}.png" for number in range(50)])
    rows = [(f"{number}.png", f"caption {number}") for number in range(50)]
    assert put_captions(connection, binding, rows) == 50
    assert len(listed_captions.take_due(connection, binding.binding_id, 100)) == 50
    assert put_captions(connection, binding, rows) == 0
    rows[7] = ("7.png", "other words")
    assert put_captions(connection, binding, rows[:49]) == 2
    assert listed_captions.take_due(connection, binding.binding_id, 100) == ["in/49.png", "in/7.png"]
    assert put_captions(connection, binding, []) == 49


def test_of_two_files_the_first_by_name_counts(connection: Connection, binding: Binding) -> None:
    [key] = put_pictures(connection, binding, ["a.png"])
    put_captions(connection, binding, [("a.png", "second")], "in/captions.tsv")
    put_captions(connection, binding, [("a.png", "first")])
    assert listed_captions.captions_of(connection, binding.binding_id, [key])[key].caption == "first"


def test_names_that_no_key_can_have_are_left_out(connection: Connection, binding: Binding) -> None:
    put_captions(connection, binding, [("x" * 3_000_000, "an index entry cannot be so long"), ("a.png", "good")])
    assert connection.scalar(text("SELECT count(*) FROM listed_captions")) == 1


def test_one_picture_reads_as_much_of_a_large_file_as_of_a_small_one(connection: Connection, binding: Binding) -> None:
    [key] = put_pictures(connection, binding, ["20000.png"])
    put_captions(connection, binding, [(f"{number}.png", "words") for number in range(20_001)])
    connection.execute(text("ANALYZE listed_captions"))
    plans: list[str] = []

    def explain(_connection: Connection, cursor: object, statement: str, values: object, *_rest: object) -> None:
        if "listed_captions" in statement and not statement.startswith("EXPLAIN"):
            plans.extend(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", values).all())  # type: ignore[arg-type]

    event.listen(connection, "before_cursor_execute", explain)
    assert listed_captions.captions_of(connection, binding.binding_id, [key])[key].caption == "words"
    assert plans and not any("Seq Scan on listed_captions" in line for line in plans), "\n".join(plans)


def test_the_database_finds_the_differences_of_a_listing(connection: Connection, binding: Binding) -> None:
    put_pictures(connection, binding, ["same.png", "changed.png", "gone.png", "lost.png"])
    listings.begin(connection)
    listed = [("new", "e"), ("same.png", "e"), ("changed.png", "f"), ("lost.png", "e"), ("same.png", "e")]
    listings.add(connection, [ListedObject(f"in/{name}", etag, 1) for name, etag in listed])
    listings.compare(connection, binding.binding_id)
    listings.add_lost(connection, ["in/lost.png", "in/gone.png"])
    found = {d.key: (d.etag, d.is_lost) for d in listings.differences(connection, "", 10)}
    assert found == {
        "in/new": ("e", False),
        "in/changed.png": ("f", False),
        "in/gone.png": (None, True),
        "in/lost.png": ("e", True),
    }
    assert [d.key for d in listings.differences(connection, "in/gone.png", 1)] == ["in/lost.png"]
