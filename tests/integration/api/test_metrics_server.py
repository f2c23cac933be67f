"""The server of the metrics: who may reach it, what it costs, and what a real Prometheus makes of it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine
from starlette.testclient import TestClient
from urllib3 import PoolManager

from ragllava.api.metrics import make_metrics_app, require_allowed, serving_metrics
from ragllava.client import ALL_METRICS, Client, Reading
from ragllava.errors import UsageError
from ragllava.settings import Settings
from tests.integration.api.test_server import process
from tests.support.job_rows import Desk
from tests.support.metrics_page import RULES
from tests.support.prometheus_server import free_port, kept_port, running_prometheus
from tests.support.run_command import Run
from tests.support.waiting import wait_for


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with kept_port() as port:
        own = settings.model_copy(update={"metrics_port": port, "tick_s": 600.0})  # a worker of a slow machine is there
        with Client(own, name="metrics", for_tenants=True) as client:
            yield client


def get(url: str) -> tuple[int, str]:
    with PoolManager(retries=False, timeout=30) as pool:
        response = pool.request("GET", url)
        return response.status, response.data.decode()


def test_the_text_names_every_metric(client: Client) -> None:
    with serving_metrics(client.settings, client.metrics.read) as url:
        assert url is not None
        status, body = get(url)
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert set(families) == {metric.name.removesuffix("_total") for metric in ALL_METRICS}
    for metric in ALL_METRICS:
        assert families[metric.name.removesuffix("_total")].type == metric.type


def test_openmetrics_for_who_accepts_it(client: Client) -> None:
    app = make_metrics_app(client.metrics.read)
    response = TestClient(app).get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_figures_are_kept_for_a_moment() -> None:
    reads = []

    def read() -> Sequence[Reading]:
        reads.append(1)
        return ()

    for kept_s, expected in ((60.0, 1), (0.0, 3)):
        reads.clear()
        test_client = TestClient(make_metrics_app(read, kept_s))
        for _ in range(3):
            assert test_client.get("/metrics").status_code == 200
        assert len(reads) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "metrics.example.org"])
def test_it_listens_on_this_machine_unless_a_setting_allows_more(host: str) -> None:
    settings = Settings(metrics_host=host)
    with pytest.raises(UsageError) as refused, serving_metrics(settings, list):
        pass
    assert str(refused.value) == (
        f"the metrics need no key, so they are not served at {host}: set RAGLLAVA_METRICS_HOST to 127.0.0.1, or "
        "RAGLLAVA_METRICS_BEYOND_LOOPBACK=true if only your own machines reach that address"
    )
    require_allowed(settings.model_copy(update={"metrics_beyond_loopback": True}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_setting(host: str) -> None:
    require_allowed(Settings(metrics_host=host))


def test_the_command_refuses_before_it_serves(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_METRICS_HOST", "0.0.0.0")
    code, _, error = run("serve", "--port", free_port())
    assert code == 1
    assert "RAGLLAVA_METRICS_BEYOND_LOOPBACK" in error


def test_a_port_that_is_taken_or_off_prevents_nothing() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port in (other.getsockname()[1], 0):
            with serving_metrics(Settings(metrics_port=port), list) as url:
                assert url is None


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_a_real_prometheus_scrapes_it_and_evaluates_the_rules(client: Client, engine: Engine, tmp_path: Path) -> None:
    desk = Desk(engine, client.settings)
    desk.live_worker()
    desk.questions_job(5, 2)
    desk.drain()
    desk.questions_job(5, 2)
    target = f"127.0.0.1:{client.settings.metrics_port}"
    with (
        serving_metrics(client.settings, client.metrics.read),
        running_prometheus(tmp_path, RULES, {target: "1s"}) as prometheus,
    ):
        expected = {
            "ragllava_up": 1.0,
            'ragllava_questions_total{stage="answer",result="answered"}': 5.0,
            'ragllava_stage_seconds_count{stage="answer"}': 3.0,
            'ragllava_queue_depth{queue="query"}': 3.0,
        }
        # A scrape that runs out of time removes the figures of the one before, until the next.
        wait_for("the figures", lambda: {query: prometheus.number(query) for query in expected} == expected, 60)
        wait_for("the rules", lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, 60)
        assert not [rule for rule in prometheus.rules() if rule.get("lastError")]


def test_the_process_serves_its_metrics_beside_the_api(environment: dict[str, str]) -> None:
    with kept_port() as port, process(environment | {"RAGLLAVA_METRICS_PORT": str(port)}):
        status, body = get(f"http://127.0.0.1:{port}/metrics")
    assert status == 200 and "ragllava_up 1.0" in body
