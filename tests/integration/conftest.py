"""Fixtures for tests of concurrency on a real database, and of the stages with the mini models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, literal

from ragllava.models.profiles import RetrieverSource
from ragllava.postcards.archive import PostcardArchive, WrittenArchive, draw_archive, write_archive
from ragllava.settings import Settings
from ragllava.stores.access import usage
from tests.conftest import own_settings
from tests.support.lock_waiters import counting_waiters
from tests.support.run_command import Run, runner
from tests.support.waiting import wait_for

if TYPE_CHECKING:  # torch is loaded by the tests that need it
    from ragllava.models.bundle import ModelBundle
    from tests.support.workshop import Workshop


@dataclass(frozen=True, slots=True)
class Postcards:
    """Drawn postcards, and where their files lie."""

    archive: PostcardArchive
    written: WrittenArchive


@pytest.fixture(scope="session")
def models(services: Settings) -> ModelBundle:
    """The mini models, loaded once for all tests."""
    from ragllava.models.bundle import ModelBundle

    return ModelBundle(services.model_copy(update={"torch_threads": 1}))


@pytest.fixture(scope="session")
def postcards(tmp_path_factory: pytest.TempPathFactory) -> Postcards:
    """60 drawn postcards on disk, with questions about them. Copy what you change."""
    archive = draw_archive(seed=3, images=60, questions=24, two_image_share=0.0)
    return Postcards(archive, write_archive(tmp_path_factory.mktemp("postcards"), archive))


@pytest.fixture
def workshop(settings: Settings, models: ModelBundle) -> Iterator[Workshop]:
    """A worker in this process, on a database and a bucket of the test's own."""
    from tests.support.workshop import open_workshop

    with open_workshop(settings, models) as workshop:
        yield workshop


@pytest.fixture(scope="module")
def whole_gallery(
    services: Settings, template_database: str, models: ModelBundle, postcards: Postcards
) -> Iterator[Workshop]:
    """A worker beside an archive of the 60 postcards; the tests of a module share it and leave the archive as it is."""
    from tests.support.workshop import open_workshop

    with own_settings(services, template_database) as own, open_workshop(own, models) as workshop:
        workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
        yield workshop


@pytest.fixture(scope="session")
def ten_questions(postcards: Postcards) -> list[str]:
    """Questions of which each is about one postcard of `whole_gallery`."""
    return [question.text for question in postcards.archive.questions[:10]]


@pytest.fixture
def run(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Call `ragllava` on the test's services, in a folder of the test's own."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def other_retriever(tmp_path_factory: pytest.TempPathFactory) -> RetrieverSource:
    """A retriever about as good as the shipped one, with other vectors."""
    from tests.support.retriever_folders import write_retriever

    return write_retriever(tmp_path_factory.mktemp("retrievers") / "other", noise=0.02)


@pytest.fixture(scope="session")
def asked(postcards: Postcards) -> list[str]:
    """The questions about the postcards of `gallery`."""
    from tests.support.postcard_gallery import CARDS

    first = {card.file_name for card in postcards.archive.postcards[:CARDS]}
    return [question.text for question in postcards.archive.questions if first.issuperset(question.relevant)]


@pytest.fixture
def gallery(workshop: Workshop, postcards: Postcards) -> Workshop:
    """The first postcards, eight to a shard."""
    from tests.support.postcard_gallery import CARDS, cards

    own = workshop.with_settings(files_per_shard=8, files_per_step=4, top_k=3, gate_questions=10, leave_one_out=False)
    own.ingest_files(cards(postcards, 0, CARDS))
    return own


@pytest.fixture
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day of a quota does not end during the test, for servers in this process; else its sum begins at 0 again."""
    monkeypatch.setattr(usage, "_TODAY", literal(date(2026, 11, 30)))


@pytest.fixture
def wait_for_waiter(engine: Engine) -> Callable[[], None]:
    """A function that returns once another session of the test's database waits for a lock."""

    def wait() -> None:
        with counting_waiters(engine) as waiters:
            wait_for("a session that waits for a lock", lambda: waiters() > 0, 60)

    return wait
