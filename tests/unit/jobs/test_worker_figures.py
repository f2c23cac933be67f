"""Figures of a worker process: who serves them, and who works without."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ragllava.cli.operate import worker_specs
from ragllava.settings import Settings
from workers import figures


def test_children_that_would_share_a_port_serve_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not figures.serve("answer@here", 1, Settings()) and not caplog.records
    assert not figures.serve("answer@here", 2, Settings(worker_metrics_port=8_611))
    assert "2 children would share it" in caplog.text


def test_figures_go_beyond_the_machine_only_where_the_settings_allow_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening: list[tuple[int, str]] = []
    monkeypatch.setattr(figures, "start_http_server", lambda port, host, _registry: listening.append((port, host)))
    assert figures.serve("answer@here", 1, Settings(worker_metrics_port=8_611))
    everywhere = Settings(worker_metrics_port=8_612, worker_metrics_host="0.0.0.0")
    assert not figures.serve("answer@here", 1, everywhere)
    assert caplog.messages[-1] == (
        "no figures at 0.0.0.0:8612: they need no key; set RAGLLAVA_WORKER_METRICS_HOST to 127.0.0.1, or "
        "RAGLLAVA_METRICS_BEYOND_LOOPBACK=true if only your own machines reach that address"
    )
    assert figures.serve("answer@here", 1, everywhere.model_copy(update={"metrics_beyond_loopback": True}))
    assert listening == [(8_611, "127.0.0.1"), (8_612, "0.0.0.0")]


def test_a_worker_works_without_figures_when_its_port_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = Settings.model_construct(**Settings().model_dump() | {"worker_metrics_port": other.getsockname()[1]})
        assert not figures.serve("answer@here", 1, taken)
    assert "Address already in use" in caplog.text


def test_each_worker_of_a_machine_has_a_port_of_its_own(tmp_path: Path) -> None:
    name = "RAGLLAVA_WORKER_METRICS_PORT"
    specs = worker_specs(Settings(home=tmp_path, worker_metrics_port=8_611), answer_workers=2)
    assert [spec.environment[name] for spec in specs] == ["8611", "8612", "8613", "8614", "8615"]
    assert not any(name in spec.environment for spec in worker_specs(Settings(home=tmp_path)))
