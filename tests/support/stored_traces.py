"""Everything that is stored anywhere, as bytes: to search it for what must not be there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psycopg
from sqlalchemy import Engine, text

from ragllava.settings import Settings
from ragllava.stores.s3_client import make_client


def database_dump(engine: Engine) -> Iterator[tuple[str, bytes]]:
    """Each table with its rows as text, as a dump of the database has them."""
    with engine.connect() as connection:
        tables = connection.scalars(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
        ).all()
        driver = cast("psycopg.Connection[tuple[object, ...]]", connection.connection.driver_connection)
        for table in tables:
            with driver.cursor() as cursor, cursor.copy(f"COPY public.{table} TO STDOUT".encode()) as copy:
                yield f"table {table}", b"".join(map(bytes, copy))


def buckets(settings: Settings) -> Iterator[tuple[str, bytes]]:
    """Each object of the test's buckets, its key before its bytes."""
    client = make_client(settings)
    for bucket in client.list_buckets():
        if not bucket.name.startswith(settings.s3_bucket):
            continue
        for listed in client.list_objects(bucket.name, recursive=True):
            response = client.get_object(bucket.name, listed.object_name)
            yield f"s3://{bucket.name}/{listed.object_name}", str(listed.object_name).encode() + b"\n" + response.read()
            response.close()
            response.release_conn()


def logs(settings: Settings) -> Iterator[tuple[str, bytes]]:
    """The log files below the home."""
    for path in sorted(Path(settings.home, "logs").rglob("*")):
        if path.is_file():
            yield f"log {path.name}", path.read_bytes()


def traces(engine: Engine, settings: Settings, *wanted: str | bytes) -> dict[str, list[str | bytes]]:
    """By place, those of the wanted texts and bytes that it holds; places without any are left out."""
    needles = {each: each if isinstance(each, bytes) else each.encode() for each in wanted}
    found = {}
    for places in (database_dump(engine), buckets(settings), logs(settings)):
        for place, content in places:
            if present := [each for each, needle in needles.items() if needle in content]:
                found[place] = present
    return found
