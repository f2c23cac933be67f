"""The drill: everything is killed, the home is deleted, and a restore brings it back."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import migrations
from ragllava.client import Client
from ragllava.local.services import LocalServices, running_services
from ragllava.settings import Settings
from tests.integration.conftest import Postcards
from tests.support.postcard_gallery import cards
from tests.support.run_command import runner
from tests.support.workshop import open_workshop

if TYPE_CHECKING:
    from ragllava.models.bundle import ModelBundle


@pytest.fixture
def homes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two homes, where nothing was started; the environment names no service."""
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)
    made = [Path(tempfile.mkdtemp(prefix="ragllava-tests-")) for _ in range(2)]
    yield made
    for home in made:
        shutil.rmtree(home, ignore_errors=True)


def test_after_the_loss_of_everything_a_restore_gives_the_same_answers(
    homes: list[Path],
    models: ModelBundle,
    postcards: Postcards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [question.text for question in postcards.archive.questions[:3]]
    services = LocalServices(Settings(home=homes[0]), outlive_us=False)
    settings = services.start()
    urls = settings.require_database(), settings.api_database()
    migrations.upgrade(settings.require_database_owner(), application_url=urls[0], api_url=urls[1])
    with open_workshop(settings, models) as workshop:
        workshop.ingest_files(cards(postcards, 0, 6))
        before = [(row.status, row.answer, row.evidence) for row in workshop.ask(texts)]
        with Client(settings) as client:
            client.backups.make(str(tmp_path / "vault"))
    for service in services._running:
        assert service.process is not None
        service.process.kill()
    services.stop()
    shutil.rmtree(homes[0])

    monkeypatch.setenv("RAGLLAVA_HOME", str(homes[1]))
    code, out, err = runner(monkeypatch, capsys)("restore", tmp_path / "vault")
    assert code == 0 and "6 pictures" in out, out + err
    with running_services(Settings(home=homes[1])) as again, open_workshop(again, models) as workshop:
        assert [(row.status, row.answer, row.evidence) for row in workshop.rows(2)] == before
        assert [(row.status, row.answer, row.evidence) for row in workshop.ask(texts)] == before
