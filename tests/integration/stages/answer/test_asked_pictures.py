"""Questions with a picture: from the line to the result, and how their pictures are kept and erased."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, func, select, text, update

from ragllava.client import Client
from ragllava.errors import InvalidInput, UsageError
from ragllava.records import AnswerOptions, AnswerStatus, FileFormat, Origin, Retrieval, by_retrieval
from ragllava.settings import Settings
from ragllava.stages.answer import asked_pictures
from ragllava.stages.answer.asked_pictures import AskedPictures
from ragllava.stages.answer.question_files import WITHOUT_TEXT, read_questions
from ragllava.stages.answer.remote_pictures import RemotePictures
from ragllava.stages.answer.submit import Submission, submit_questions, submit_refresh
from ragllava.stages.erasing.remove import Remover
from ragllava.stages.results.results import ResultRow
from ragllava.stores.archives import archive, blobs
from ragllava.stores.buckets import bindings
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.database import equals_any, in_transaction
from ragllava.stores.objects import content_key
from ragllava.stores.schema import blobs as blobs_table
from ragllava.stores.schema import images, jobs
from tests.conftest import own_settings
from tests.integration.conftest import Postcards
from tests.support.postcard_gallery import CARDS, cards
from tests.support.workshop import ARCHIVE, Workshop, open_workshop

if TYPE_CHECKING:
    from ragllava.models.bundle import ModelBundle


@pytest.fixture(scope="module")
def gallery(
    services: Settings, template_database: str, models: ModelBundle, postcards: Postcards
) -> Iterator[Workshop]:
    """The first postcards, for all tests of the module: no test relies on what another one leaves."""
    with own_settings(services, template_database) as own, open_workshop(own, models) as workshop:
        shop = workshop.with_settings(leave_one_out=False)
        shop.ingest_files(cards(postcards, 0, CARDS))
        yield shop


@pytest.fixture
def client(gallery: Workshop) -> Iterator[Client]:
    with Client(gallery.settings) as client:
        yield client


def pictures_of(shop: Workshop, **values: Any) -> AskedPictures:
    remote = values.pop("remote", RemotePictures([]))
    return AskedPictures(shop.engine, shop.resources.objects, ARCHIVE, remote, **values)


def card_file(postcards: Postcards, number: int) -> Path:
    return postcards.written.pictures / postcards.archive.postcards[number].file_name


def submit(shop: Workshop, lines: list[dict[str, Any]], folder: Path | None = None, **options: Any) -> int:
    content = "\n".join(map(json.dumps, lines)).encode()
    with pictures_of(shop, folder=folder).storing() as store_picture:
        file = read_questions(content, name="q.jsonl", store_picture=store_picture)
    how = Submission(ARCHIVE, AnswerOptions(**options))
    return in_transaction(shop.engine, submit_questions, shop.settings, file, how).job_id


def answered(
    shop: Workshop, lines: list[dict[str, Any]], folder: Path | None = None, **options: Any
) -> list[ResultRow]:
    job_id = submit(shop, lines, folder, **options)
    shop.run()
    return shop.rows(job_id)


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def stored(shop: Workshop) -> set[str]:
    """The content that the database knows and the object store has."""
    with shop.engine.connect() as connection:
        hashes = set(connection.scalars(select(blobs_table.c.sha256)))
    return {sha256 for sha256 in hashes if shop.resources.objects.exists(content_key(sha256))}


def gallery_hashes(shop: Workshop) -> list[str]:
    """The content of the archive's images."""
    with shop.engine.connect() as connection:
        return list(connection.scalars(select(images.c.sha256)))


def test_pictures_like_the_asked_one_come_first(gallery: Workshop, postcards: Postcards) -> None:
    card = postcards.archive.postcards[7]
    question = next(q.text for q in postcards.archive.questions if card.file_name not in q.relevant)
    line = {"question": question, "picture": card.file_name}
    [row] = answered(gallery, [line], postcards.written.pictures, top_k=5)
    ranked = by_retrieval(row.candidates)
    assert ranked[0].image.source == card.file_name and ranked[0].retrieval_score == pytest.approx(1, abs=0.01)
    assert [c.origin for c in ranked[:5]] == [Origin.ASKED_PICTURE] * 5
    assert {c.origin for c in ranked[5:]} <= {Origin.PICTURE, Origin.CAPTION}  # of the text
    assert row.picture and row.question == question
    # Without the picture the text finds others; with `picture` alone, the text finds nothing more.
    [alone] = answered(gallery, [line], postcards.written.pictures, top_k=5, retrieval=Retrieval.PICTURE)
    assert [c.image.image_id for c in by_retrieval(alone.candidates)] == [c.image.image_id for c in ranked[:5]]


def test_a_picture_beside_other_questions_changes_nothing_for_them(gallery: Workshop, postcards: Postcards) -> None:
    texts = [question.text for question in postcards.archive.questions[:3]]
    alone = gallery.ask(texts, top_k=3)
    lines: list[dict[str, Any]] = [{"question": text} for text in texts]
    lines.insert(1, {"question": texts[0], "picture": data_url(card_file(postcards, 2))})
    mixed = answered(gallery, lines, top_k=3)
    for row, same in zip(alone, (mixed[0], mixed[2], mixed[3]), strict=True):
        assert [(c.image, c.origin) for c in same.candidates] == [(c.image, c.origin) for c in row.candidates]
        scores = [c.relevance for c in row.candidates]
        assert [c.relevance for c in same.candidates] == pytest.approx(scores, abs=1e-6)


def test_a_picture_without_text(gallery: Workshop, postcards: Postcards, client: Client) -> None:
    gallery_rows = answered(gallery, [{"picture": data_url(card_file(postcards, 3))}])
    assert gallery_rows[0].question == WITHOUT_TEXT and gallery_rows[0].status != AnswerStatus.FAILED
    with pytest.raises(UsageError, match="no picture is looked at"):
        client.questions.begin("", ARCHIVE, AnswerOptions(retrieval=Retrieval.CAPTION), picture=b"x")


def test_what_is_no_picture_fails_alone(gallery: Workshop, postcards: Postcards) -> None:
    bad = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
    lines = [{"question": "What?", "picture": bad}, {"question": "What?"}]
    broken, good = answered(gallery, lines)
    assert broken.status == AnswerStatus.FAILED and "the picture of the question cannot be read" in str(broken.error)
    assert good.status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE)


def test_results_and_report_show_the_picture(
    gallery: Workshop, postcards: Postcards, client: Client, tmp_path: Path
) -> None:
    job_id = submit(gallery, [{"question": "What?", "picture": data_url(card_file(postcards, 1))}, {"question": "?"}])
    gallery.run()
    saved = {}
    for format in (FileFormat.JSONL, FileFormat.CSV, FileFormat.PARQUET):
        path = tmp_path / f"r.{format}"
        client.questions.save_results(job_id, path)
        saved[format] = path
    first, second = map(json.loads, saved[FileFormat.JSONL].read_text().splitlines())
    assert len(first["picture"]) == 64 and second["picture"] is None
    assert first["picture"] in saved[FileFormat.CSV].read_text()
    from pyarrow import parquet

    assert parquet.read_table(saved[FileFormat.PARQUET], columns=["picture"]).to_pydict()["picture"] == [
        first["picture"],
        None,
    ]
    page = tmp_path / "report.html"
    client.questions.save_report(job_id, page)
    assert page.read_text().count('class="picture asked ') == 1
    # A job without pictures has no such key.
    other = gallery.submit(["What?"]).job_id
    gallery.run()
    assert "picture" not in gallery.rows(other)[0].as_json()


def test_a_refresh_keeps_the_picture(gallery: Workshop, postcards: Postcards) -> None:
    job_id = submit(gallery, [{"question": "What?", "picture": data_url(card_file(postcards, 4))}], top_k=3)
    gallery.run()
    [before] = gallery.rows(job_id)
    refresh, _ = in_transaction(gallery.engine, submit_refresh, gallery.settings, job_id)
    gallery.run()
    [after] = gallery.rows(refresh)
    assert after.picture == before.picture and after.of_pictures
    assert after.previous is not None and after.previous.changes == ()  # the same candidates: taken over
    assert {c.origin for c in after.candidates} == {c.origin for c in before.candidates}


def test_the_picture_goes_with_its_job(gallery: Workshop, postcards: Postcards) -> None:
    own = pictures_of(gallery).store_bytes(card_file(postcards, 40).read_bytes())  # of no image of the archive
    shared = card_file(postcards, 0)
    lines = [
        {"question": "What?", "picture": data_url(card_file(postcards, 40))},
        {"question": "What?", "picture": data_url(shared)},
    ]
    first, second = submit(gallery, lines), submit(gallery, lines[:1])
    gallery.run()
    with gallery.engine.begin() as connection:  # old enough for gc, which leaves it alone
        connection.execute(update(blobs_table).values(updated_at=text("now() - interval '30 days'")))
        assert own not in {blob.sha256 for blob in blobs.unreferenced_blobs(connection, 60.0)}
        assert own not in blobs.mark_deleting(connection, 60.0)
    remover = Remover(gallery.engine, gallery.settings, gallery.resources.objects, "tester")
    kept = set(gallery_hashes(gallery))
    remover.job(first)
    assert {own, *kept} <= stored(gallery)  # the second job was asked with it
    remover.job(second)
    assert own not in stored(gallery) and kept <= stored(gallery)


def test_a_picture_that_no_question_came_for_is_garbage(gallery: Workshop) -> None:
    sha256 = pictures_of(gallery).store_bytes(b"left behind")
    with gallery.engine.begin() as connection:
        assert sha256 in {blob.sha256 for blob in blobs.unreferenced_blobs(connection, -60.0)}
        assert sha256 not in {blob.sha256 for blob in blobs.unreferenced_blobs(connection, 60.0)}


def test_an_erased_image_of_the_same_bytes_leaves_the_question(gallery: Workshop, postcards: Postcards) -> None:
    [row] = answered(gallery, [{"question": "What?", "picture": data_url(card_file(postcards, 5))}])
    remover = Remover(gallery.engine, gallery.settings, gallery.resources.objects, "tester")
    name = postcards.archive.postcards[5].file_name
    remover.pictures(ARCHIVE, [name])
    assert row.picture in stored(gallery) and name not in gallery.images()


def test_a_bound_prefix_is_read_and_nothing_else(gallery: Workshop, postcards: Postcards) -> None:
    objects, bucket = gallery.resources.objects, gallery.settings.s3_bucket
    objects.put("shared/a card.png", card_file(postcards, 6).read_bytes())
    objects.put("secret.png", b"secret")
    with gallery.engine.begin() as connection:
        archive_id = archive.get_archive(connection, ARCHIVE).archive_id
        bindings.bind(connection, archive_id, BindingRole.PICTURES, bucket, "shared/", {})
    [row] = answered(gallery, [{"question": "What?", "picture": f"s3://{bucket}/shared/a%20card.png"}], top_k=1)
    assert by_retrieval(row.candidates)[0].image.source == postcards.archive.postcards[6].file_name
    pictures = pictures_of(gallery)
    for key, sentence in (("secret.png", "no prefix that is bound"), ("shared/b.png", "does not exist")):
        with pytest.raises(UsageError, match=sentence):
            pictures.store(f"s3://{bucket}/{key}")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("../outside.png", "not within the folder"),
        ("/etc/hostname", "not within the folder"),
        ("link.png", "not within the folder"),
        ("missing.png", "there is no file"),
        ("empty.png", "is empty"),
        ("https://example.org/a.png", "RAGLLAVA_API_PICTURE_HOSTS"),
        ("http://127.0.0.1/a.png", "RAGLLAVA_API_PICTURE_HOSTS"),
        ("data:image/png,abc", "must be data"),
        ("data:image/png;base64,***", "not valid base64"),
    ],
)
def test_addresses_that_are_refused(gallery: Workshop, tmp_path: Path, address: str, sentence: str) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(b"x")
    (folder / "empty.png").write_bytes(b"")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(InvalidInput, match=sentence):
        submit(gallery, [{"question": "What?", "picture": address}], folder)


def test_no_path_is_read_where_no_folder_is_given(gallery: Workshop) -> None:
    with pytest.raises(UsageError, match="is not the address of a picture"):
        pictures_of(gallery).store("/etc/hostname")


def test_all_pictures_of_a_file_are_there_when_it_has_been_read(gallery: Workshop) -> None:
    pictures = pictures_of(gallery)
    with pictures.storing() as store:
        hashes = [store(f"data:image/png;base64,{base64.b64encode(bytes([n])).decode()}") for n in range(60)]
    assert len(set(hashes)) == 60 and set(hashes) <= stored(gallery)


@pytest.mark.parametrize(("most", "most_bytes", "noted"), [(3, 10_000, [3, 6, 8]), (100, 900, [3, 6, 8])])
def test_pictures_of_a_file_are_noted_in_groups(
    gallery: Workshop, monkeypatch: pytest.MonkeyPatch, most: int, most_bytes: int, noted: list[int]
) -> None:
    monkeypatch.setattr(asked_pictures, "_NOTED_AT_ONCE", most)
    monkeypatch.setattr(asked_pictures, "_NOTED_BYTES", most_bytes)
    hashes, counted = list[str](), list[int]()

    def count(connection: Connection) -> None:
        is_new = equals_any(blobs_table.c.sha256, hashes)
        counted.append(connection.scalars(select(func.count()).select_from(blobs_table).where(is_new)).one())

    kinds = [hashlib.sha256(f"{most} {number}".encode()).digest() * 10 for number in range(8)]  # of 320 bytes
    hashes += [hashlib.sha256(data).hexdigest() for data in kinds]
    with pictures_of(gallery, count_bytes=count).storing() as store:
        for data in kinds:
            store(f"data:image/png;base64,{base64.b64encode(data).decode()}")
    assert counted == noted and set(hashes) <= stored(gallery)


def test_slow_and_many_other_hosts_are_given_up(gallery: Workshop) -> None:
    pictures = pictures_of(gallery)
    for number in range(101):
        with pytest.raises(UsageError, match="at most 100 lines" if number == 100 else "are not fetched from"):
            pictures.store("https://example.org/a.png")
    slow = pictures_of(gallery)
    slow._fetching_s = 61.0
    with pytest.raises(UsageError, match="took more than 60 s"):
        slow.store("https://example.org/a.png")


def test_ask_with_a_file(gallery: Workshop, postcards: Postcards, client: Client) -> None:
    job_id = client.questions.begin("What?", ARCHIVE, picture=card_file(postcards, 8))
    gallery.run()
    [row] = gallery.rows(job_id)
    assert by_retrieval(row.candidates)[0].image.source == postcards.archive.postcards[8].file_name
    with gallery.engine.connect() as connection:
        assert connection.scalar(select(jobs.c.spec["pictures"]).where(jobs.c.id == job_id)) is True


def test_tokens_are_counted(gallery: Workshop, asked: list[str]) -> None:
    rows = gallery.ask(asked[:4])
    for row in rows:
        if row.status is AnswerStatus.ANSWERED:
            assert (row.prompt_tokens or 0) > 20 and row.completion_tokens
        else:
            assert (row.prompt_tokens, row.completion_tokens) == (0, 0)
    assert AnswerStatus.ANSWERED in {row.status for row in rows}


class Meeting(RemotePictures):
    """Hosts that send each picture only when four of them are asked for at the same time."""

    barrier = threading.Barrier(4)

    def fetch(self, url: str, max_bytes: int) -> bytes:
        if "wrong" in url:
            raise UsageError("no such host")
        self.barrier.wait(60)
        return url.encode()


def test_pictures_of_other_hosts_are_fetched_a_few_at_once(gallery: Workshop) -> None:
    rows = [{"question": "What?", "picture": f"https://host.example/{number}.png"} for number in range(8)]
    rows.insert(4, {"question": "What?", "picture": "https://wrong.example/a.png"})
    content = "\n".join(map(json.dumps, rows)).encode()
    pictures = pictures_of(gallery, remote=Meeting([]))
    with pictures.storing() as store:
        file = read_questions(content, name="q.jsonl", store_picture=store, fetch_ahead=pictures.fetch_ahead)
    hashes = [hashlib.sha256(row["picture"].encode()).hexdigest() for row in rows if "wrong" not in row["picture"]]
    assert [question.picture for question in file.valid] == hashes
    assert [(error.line, error.message) for error in file.errors] == [(5, "no such host")]
