"""A bucket that an archive follows, on the system of `ragllava up`, with the receiver killed in the middle."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from urllib.parse import quote

import psutil
import pytest
from PIL import Image
from sqlalchemy import text

from ragllava.client import Client
from ragllava.postcards.archive import KnownQuestion, draw_archive
from ragllava.postcards.drawing import draw_postcard
from ragllava.postcards.postcard import Postcard
from tests.support.foreign_bucket import Bucket, make_bucket
from tests.support.processes import command_of
from tests.support.terminal import Terminal, running_system, terminal
from tests.support.waiting import wait_for

DRAWN = draw_archive(seed=11, images=120, questions=40, two_image_share=0.0)
CARDS = {card.file_name: card for card in DRAWN.postcards}


@pytest.fixture(scope="module")
def shell() -> Iterator[Terminal]:
    with terminal() as made, running_system(made):
        yield made


@pytest.fixture(scope="module")
def client(shell: Terminal) -> Iterator[Client]:
    with closing(Client(shell.settings())) as made:
        yield made


@pytest.fixture(scope="module")
def bucket(shell: Terminal) -> Bucket:
    """Bound to the archive `cards`."""
    made = make_bucket(shell.settings())
    said = shell.do("archive", "bind", "cards", f"s3://{made.name}/in")
    assert said == (
        f"s3://{made.name}/in/ is bound: its pictures go to the archive cards\n"
        f"s3://{made.name}/in/: 0 objects, nothing new\n"
    )
    return made


def upload(bucket: Bucket, card: Postcard, color: str | None = None) -> None:
    """Put a postcard with its caption, perhaps painted in another colour."""
    attributes = replace(card.attributes, color=color or card.attributes.color)
    drawing = draw_postcard(attributes, random.Random(card.picture_seed))
    stream = io.BytesIO()
    Image.fromarray(drawing.pixels).save(stream, "PNG")
    bucket.put(f"in/{card.file_name}", stream.getvalue(), {"caption": quote(card.caption)})


def receiver(shell: Terminal) -> psutil.Process | None:
    """The receiver's process, None while there is none."""
    for found in shell.processes():
        if "receiver" in command_of(found):
            return found
    return None


def listens(shell: Terminal) -> bool:
    """Whether the receiver answers: its process has just begun when it is there, and what happens meanwhile is lost."""
    return any(
        service["answers"]
        for service in shell.call("status", "--json").json["services"]
        if service["title"] == "receiver"
    )


def searchable(client: Client) -> list[str]:
    """The images that a search can find, by name; each as often as it would be found."""
    query = text("""
        SELECT source FROM images JOIN archives ON archives.id = archive_id
        JOIN embeddings ON index_id = active_index_id AND image_id = images.id
        WHERE name = 'cards' AND NOT retired ORDER BY source
    """)
    with client.engine.begin() as connection:
        return list(connection.scalars(query))


def image_id(client: Client, name: str) -> int | None:
    """The living image of this name."""
    with client.engine.begin() as connection:
        query = text("SELECT id FROM images WHERE source = :name AND NOT retired")
        found: int | None = connection.scalar(query, {"name": name})
        return found


def ask(shell: Terminal, question: KnownQuestion) -> tuple[str | None, list[str]]:
    """The answer, and the names of the pictures that it rests on."""
    row = json.loads(shell.call_well("ask", question.text, "--archive", "cards", "--top-k", "5", "--json"))
    return row["answer"], [shown["source"] for shown in row["evidence"]]


def test_all_are_searchable_after_a_killed_receiver_and_one_scan(
    shell: Terminal, client: Client, bucket: Bucket
) -> None:
    cards = list(CARDS.values())
    for card in cards[:60]:
        upload(bucket, card)
    wait_for("the first events to become images", lambda: len(searchable(client)) > 0)
    running = receiver(shell)
    assert running is not None
    running.kill()
    for card in cards[60:]:
        upload(bucket, card)
    wait_for("the receiver to run again", lambda: (found := receiver(shell)) is not None and found.pid != running.pid)
    typed = shell.run("archive", "scan", "cards", "--json")
    [report] = typed.json
    assert typed.code == 0 and report["listed"] == len(CARDS)
    assert report["added"]["number"] > 0, "while nobody listened, events were lost"
    wait_for("all pictures to be searchable", lambda: searchable(client) == sorted(CARDS))
    client.jobs.wait(max(report["jobs"]))
    again = shell.call_well("archive", "scan", "cards")
    assert again == f"s3://{bucket.name}/in/: 120 objects, nothing new\n"
    assert searchable(client) == sorted(CARDS)
    [view] = client.archives.bindings("cards")
    assert (view.objects, view.pictures, view.refused, view.waiting) == (120, 120, 0, 0)
    assert f"bound to s3://{bucket.name}/in/ (pictures): 120 objects" in shell.call_well("archive", "show", "cards")


@pytest.fixture(scope="module")
def gallery(shell: Terminal, client: Client, bucket: Bucket) -> None:
    """All postcards are searchable, also where the test before did not run."""
    wait_for("the receiver to listen", lambda: listens(shell))
    for name in CARDS.keys() - searchable(client):
        upload(bucket, CARDS[name])
    wait_for("all pictures to be searchable", lambda: searchable(client) == sorted(CARDS))


def rightly_answered(shell: Terminal, questions: Sequence[KnownQuestion]) -> KnownQuestion:
    """The first question that is answered rightly, from its own picture."""
    for question in questions:
        answer, evidence = ask(shell, question)
        if answer == question.answer and evidence[:1] == list(question.relevant):
            return question
    raise AssertionError("the shipped models answer none of these")


@pytest.mark.usefixtures("gallery")
def test_an_overwritten_object_changes_the_answer_and_a_deleted_one_is_gone(
    shell: Terminal, client: Client, bucket: Bucket
) -> None:
    colors = [question for question in DRAWN.questions if question.text.startswith("What color is")]
    question = rightly_answered(shell, colors)
    [name] = question.relevant
    before = image_id(client, name)
    upload(bucket, CARDS[name], "white" if question.answer == "black" else "black")
    wait_for("the new picture to take its place", lambda: image_id(client, name) not in (before, None))
    wait_for("it to be searchable", lambda: searchable(client) == sorted(CARDS))
    answer, _ = ask(shell, question)
    assert answer != question.answer

    bucket.remove(f"in/{name}")
    wait_for("the picture to be gone", lambda: name not in searchable(client))
    _, evidence = ask(shell, question)
    assert name not in evidence
    assert len(searchable(client)) == len(CARDS) - 1


@pytest.mark.usefixtures("gallery")
def test_status_shows_the_receiver_and_counts_its_events(shell: Terminal, client: Client) -> None:
    wait_for("no event to wait", lambda: client.system.events()["waiting"] == 0)
    status = shell.run("status", "--json")
    [found] = [service for service in status.json["services"] if service["title"] == "receiver"]
    assert (status.json["troubles"], status.json["faults"]) == ({}, [])
    assert (status.code, found["answers"], found["embedded"]) == (0, True, True)
    assert status.json["events"]["waiting"] == 0
    assert status.json["events"]["received"] >= 2
