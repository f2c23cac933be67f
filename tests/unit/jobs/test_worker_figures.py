"""Figures of a worker process: who serves them, and who works without."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ragllava.cli.operate import worker_specs
from ragllava.settings import Settings
from workers import figures


def test_children_that_would_share_a_port_serve_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not figures.serve("answer@here", 1, 0) and not caplog.records
    assert not figures.serve("answer@here", 2, 8_611)
    assert "2 children would share it" in caplog.text


def test_a_worker_works_without_figures_when_its_port_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind((figures.HOST, 0))
        other.listen()
        assert not figures.serve("answer@here", 1, other.getsockname()[1])
    assert "Address already in use" in caplog.text


def test_each_worker_of_a_machine_has_a_port_of_its_own(tmp_path: Path) -> None:
    name = "RAGLLAVA_WORKER_METRICS_PORT"
    specs = worker_specs(Settings(home=tmp_path, worker_metrics_port=8_611), answer_workers=2)
    assert [spec.environment[name] for spec in specs] == ["8611", "8612", "8613", "8614", "8615"]
    assert not any(name in spec.environment for spec in worker_specs(Settings(home=tmp_path)))
