"""Each alert of infra/prometheus/rules.yml is seen firing in a real Prometheus when its cause is made, and not before.

A real exporter reads a real system, and the causes are made by the product's own functions. The rules are those of the
file with every duration, of `for` and of the ranges, divided by QUICKER; thresholds in seconds stay as they are. Three
causes would take minutes or a full disk: a late schedule and the last tick are moved back in time, and the limit of the
disk is raised above the size of the disk.
"""

from __future__ import annotations

import base64
import itertools
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from ragllava.api.metrics import serving_metrics
from ragllava.client import BindingRole, Client, JobKind, ScheduleRequest
from ragllava.jobs.figures import METRICS
from ragllava.local.postgres import PostgresService
from ragllava.records import ScheduleAction
from ragllava.settings import Settings
from ragllava.stages.buckets.received import record_events
from ragllava.stages.buckets.watched_folder import WatchedFolder
from ragllava.stages.notices.deliver import process_notices
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stages.webhooks.deliver import deliver_due
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import notices, ticks
from ragllava.stores.maintenance.notices import NewNotice, NoticeEvent
from ragllava.stores.objects import ObjectStore
from tests.chaos.proxy import Proxy
from tests.support.archive_rows import put
from tests.support.foreign_bucket import make_bucket
from tests.support.maintenance_tasks import a_training, do, execute
from tests.support.metrics_page import RULES
from tests.support.picture_files import encoded, quadrants
from tests.support.prometheus_server import Prometheus, kept_port, running_prometheus
from tests.support.waiting import wait_for
from tests.support.workshop import ARCHIVE, Workshop

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed"),
    pytest.mark.timeout(900),  # each wait has a limit of its own
]

QUICKER = 300
SCRAPE = "2s"
SLOW_S, SLOW_SCRAPE = 2.3, "6s"  # of the server whose database is slow: more than the alert's limit; enough for that
UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000}
NOBODY = "127.0.0.1:9"
ELSEWHERE = "http://127.0.0.1:10/notices"
GIB_LIMIT = "2 * 1024 ^ 3"


def shortened(duration: str) -> str:
    """`30m` as `3000ms`."""
    return f"{int(duration[:-1]) * UNITS_MS[duration[-1]] // QUICKER}ms"


def quick_rules() -> dict[str, Any]:
    """The rules of the file, of which nothing but the durations differs."""
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\[(\w+)\]", lambda match: f"[{shortened(match[1])}]", rule["expr"])
            if "for" in rule:
                rule["for"] = shortened(rule["for"])
    return rules


def alert_names(rules: dict[str, Any]) -> set[str]:
    return {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


@dataclass
class Server:
    """What shows the metrics: a client of its own, whose way to the database can be cut and slowed down."""

    client: Client
    proxy: Proxy
    running: ExitStack = field(default_factory=ExitStack)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.client.settings.metrics_port}"

    def start(self) -> None:
        self.running.enter_context(serving_metrics(self.client.settings, self.client.metrics.read, kept_s=0.1))

    def stop(self) -> None:
        self.running.close()


@contextmanager
def server_behind_proxy(settings: Settings) -> Iterator[Server]:
    url = make_url(str(settings.api_database()))
    upstream = Path(str(url.query["host"])) / PostgresService.socket_name
    # A path that is short enough for a socket.
    with tempfile.TemporaryDirectory(prefix="ragllava-tests-") as folder, kept_port() as port:
        there = url.update_query_dict({"host": folder}).render_as_string(hide_password=False)
        own = settings.model_copy(update={"api_database_url": SecretStr(there), "metrics_port": port})
        with (
            closing(Proxy(Path(folder) / upstream.name, upstream)) as proxy,
            Client(own, name="metrics", for_tenants=True) as client,
        ):
            server = Server(client, proxy)
            yield server
            server.stop()


class Ticking:
    """Ticks that end every second, as those of a maintenance worker that has nothing to do."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop, self._stop = workshop, threading.Event()
        self._tick()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _tick(self) -> None:
        in_transaction(self._workshop.engine, ticks.note_tick)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self._tick()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)


@dataclass
class Scene:
    """The system with its two servers of metrics, the Prometheus that watches it, and a cause for each alert."""

    workshop: Workshop
    client: Client
    first: Server
    second: Server
    ticking: Ticking
    prometheus: Prometheus
    rules: Path
    folder: Path
    seen: set[str] = field(default_factory=set)
    machines: Iterator[int] = field(default_factory=itertools.count)

    def look(self) -> dict[str, set[str]]:
        """The states of all alerts that are not inactive; those that fire have been seen."""
        alerts = self.prometheus.alerts()
        self.seen |= {name for name, states in alerts.items() if "firing" in states}
        return alerts

    def fires(self, alert: str) -> bool:
        return "firing" in self.look().get(alert, ())

    def hold_removals(self) -> None:
        """The disk of a watched folder is not mounted any more."""
        folder = self.folder / "watched"
        folder.mkdir()
        for number in range(3):
            picture = quadrants(size=(48, 48))
            picture.paste((60 * number, 90, 120), (0, 0, 24, 48))
            (folder / f"{number}.png").write_bytes(encoded(picture, "PNG"))
        watched = WatchedFolder(folder, ARCHIVE)
        self.client.archives.follow(watched)
        self.workshop.run()
        publish_missing_results(self.workshop.engine, self.workshop.resources.objects)
        folder.rename(self.folder / "unmounted")
        folder.mkdir()
        assert self.client.archives.follow(watched).held == 3

    def leave_gaps(self) -> None:
        """A picture was stored, and no job has tried to embed it; the maintenance task `gaps` counts it."""
        put(self.workshop, b"never embedded", ARCHIVE)
        do(self.workshop, "gaps")

    def deliver_in_vain(self) -> None:
        """Jobs end, and the receiver of their webhooks does not answer."""
        for number in range(11):
            self.client.webhooks.create("me", None, f"http://{NOBODY}/{number}", [JobKind.ANSWER])
        for _ in range(10):
            self.workshop.questions_job(1, 1)
        self.workshop.drain()
        publish_missing_results(self.workshop.engine, self.workshop.resources.objects)
        assert deliver_due(self.workshop.engine, self.workshop.settings) == 0

    def give_webhooks_up(self) -> None:
        """A job ends, and the receivers of its webhooks are not in RAGLLAVA_WEBHOOK_HOSTS any more. What waits for them
        goes on waiting."""
        execute(self.workshop, "UPDATE deliveries SET not_before = now() + interval '1 day'")
        self.workshop.questions_job(1, 1)
        self.workshop.drain()
        publish_missing_results(self.workshop.engine, self.workshop.resources.objects)
        own = self.workshop.settings.model_copy(update={"webhook_hosts": "https://example.org"})
        assert deliver_due(self.workshop.engine, own) == 0

    def give_mailings_up(self) -> None:
        """The receiver of a rule is not in RAGLLAVA_WEBHOOK_HOSTS, so its webhook is never sent."""
        own = {
            "notify_rules": f"disk_low={ELSEWHERE}",
            "notify_secret": SecretStr(f"whsec_{base64.b64encode(bytes(24)).decode()}"),
            "disk_low_gib": 0.0,
        }
        low = {"host": "x", "free_gib": 1.0, "total_gib": 2.0, "limit_gib": 3.0}
        new = NewNotice(NoticeEvent.DISK_LOW, f"machine {next(self.machines)}", low)
        assert in_transaction(self.workshop.engine, notices.announce, new)
        assert process_notices(self.workshop.engine, self.workshop.settings.model_copy(update=own)) == 0

    def publish_in_vain(self) -> None:
        """A job ends while the object store is away."""
        self.workshop.questions_job(1, 1)
        self.workshop.drain()
        self.fail_to_publish()

    def fail_to_publish(self) -> None:
        away = self.workshop.settings.model_copy(update={"s3_endpoint": NOBODY, "s3_socket": None})
        execute(self.workshop, "UPDATE faults SET not_before = now()")
        assert publish_missing_results(self.workshop.engine, ObjectStore(away)) == 0

    def fail_persistently(self) -> None:
        """The object store stays away, at the second and the third attempt too."""
        self.fail_to_publish()
        self.fail_to_publish()

    def change_objects(self) -> None:
        """More objects of a bucket change than are looked at."""
        bucket = make_bucket(self.workshop.settings)
        self.client.archives.bind(ARCHIVE, f"s3://{bucket.name}/in/", BindingRole.PICTURES)
        in_transaction(self.workshop.engine, record_events, [(bucket.name, f"in/{n}.png") for n in range(1_001)])

    def slow_database(self) -> None:
        """A second server reads the same database over a slow network."""
        self.second.client.metrics.read()  # it is connected already
        self.second.proxy.slow_down(SLOW_S / len(METRICS) / 2)
        self.second.start()

    def fail_questions(self) -> None:
        """Two of ten lines of a question file are no questions."""
        lines = [b'{"question": "where is it?"}'] * 8 + [b'{"question": 7}', b"{"]
        self.client.questions.submit(b"\n".join(lines), ARCHIVE, skip_invalid=True)
        self.workshop.drain()

    def fail_job(self) -> None:
        """The only picture of an ingest is damaged."""
        damaged = self.folder / "damaged.png"
        damaged.write_bytes(encoded(quadrants(size=(48, 48)), "PNG")[:60])
        job = self.client.archives.ingest(damaged, ARCHIVE)
        self.workshop.run()
        assert self.client.jobs.get(job.job_id).state == "failed"

    def add_late_schedule(self) -> None:
        """A schedule has been due for more than five minutes, and no tick fires it."""
        self.client.schedules.add(ScheduleRequest(ScheduleAction.GAPS, "0 3 * * *"))
        execute(self.workshop, "UPDATE schedules SET next_due = now() - interval '301 s'")

    def leave_shards_waiting(self) -> None:
        """A job waits, and the worker that is ready for its queue takes none of its shards."""
        self.workshop.questions_job(4, 2)
        self.workshop.dispatch()

    def lose_a_worker(self) -> None:
        """A worker has taken a shard and vanished, and no tick reaps it."""
        assert self.workshop.claim(self.workshop.ids("queued")[0], lease_s=0.0)

    def train_without_worker(self) -> None:
        """A training waits, and no worker trains."""
        a_training(self.workshop, None)

    def fill_disk(self) -> None:
        """Less than the limit is left of the disk: whatever is left, this limit is higher."""
        rules = self.rules.read_text()
        assert rules.count(GIB_LIMIT) == 1
        limit = shutil.disk_usage(self.folder).total + 1
        self.rules.write_text(rules.replace(GIB_LIMIT, str(limit)))
        self.prometheus.reload()

    def stop_ticking(self) -> None:
        """The maintenance worker ends, more than a minute ago."""
        self.ticking.close()
        execute(self.workshop, "UPDATE ticks SET ended_at = now() - interval '61 s'")

    def causes(self) -> dict[str, Callable[[], None]]:
        """By alert, those first that take longest to fire; all but that of RagllavaDown."""
        return {
            "RagllavaRemovalsHeld": self.hold_removals,
            "RagllavaGaps": self.leave_gaps,
            "RagllavaDeliveriesWaiting": self.deliver_in_vain,
            "RagllavaWebhooksGivenUp": self.give_webhooks_up,  # with the webhooks that are there now
            "RagllavaResultsWaiting": self.publish_in_vain,
            "RagllavaEventsWaiting": self.change_objects,
            "RagllavaFaults": self.fail_persistently,
            "RagllavaMetricsSlow": self.slow_database,
            "RagllavaQuestionsFail": self.fail_questions,
            "RagllavaJobsFail": self.fail_job,
            "RagllavaMailingsGivenUp": self.give_mailings_up,
            "RagllavaScheduleLate": self.add_late_schedule,
            "RagllavaQueueStuck": self.leave_shards_waiting,
            "RagllavaLeasesOverdue": self.lose_a_worker,
            "RagllavaNoWorker": self.train_without_worker,
            "RagllavaDiskLow": self.fill_disk,
            "RagllavaNoTick": self.stop_ticking,
        }


@pytest.fixture
def scene(workshop: Workshop, tmp_path: Path) -> Iterator[Scene]:
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump(quick_rules()))
    own = workshop.with_settings(webhook_hosts=f"http://{NOBODY}")
    with (
        Client(own.settings, name="test") as client,
        server_behind_proxy(own.settings) as first,
        server_behind_proxy(own.settings) as second,
        closing(Ticking(own)) as ticking,
        running_prometheus(tmp_path, rules, {first.target: SCRAPE, second.target: SLOW_SCRAPE}, "200ms") as prometheus,
    ):
        first.start()
        yield Scene(own, client, first, second, ticking, prometheus, rules, tmp_path)


# Increases, which are over when they have left the range: the cause goes on until the alert fires. The first failure is
# seen in a longer range.
INCREASES = {
    "RagllavaQuestionsFail": 'max(increase(ragllava_questions_total{result="failed"}[1h]))',
    "RagllavaWebhooksGivenUp": "max(increase(ragllava_webhooks_given_up_total[1h]))",
    "RagllavaMailingsGivenUp": "max(increase(ragllava_mailings_given_up_total[1h]))",
    "RagllavaJobsFail": 'max(increase(ragllava_jobs_total{kind="ingest",result="failed"}[1h]))',
}


def make_cause(scene: Scene, alert: str, cause: Callable[[], None]) -> None:
    """Make the cause of an alert that is inactive, until Prometheus has noticed."""
    assert alert not in scene.look(), f"{alert} before its cause"
    cause()
    if alert in INCREASES:
        wait_for("the first failure to be seen", lambda: (scene.prometheus.number(INCREASES[alert]) or 0) > 0)

    def is_noticed() -> bool:
        if alert not in INCREASES:
            return alert in scene.look()
        if scene.fires(alert):
            return True
        cause()
        return False

    wait_for(f"{alert} to be pending", is_noticed)


def test_each_alert_is_seen_firing_when_its_cause_is_made_and_not_before(scene: Scene) -> None:
    prometheus, causes = scene.prometheus, scene.causes()
    assert {*causes, "RagllavaDown"} == alert_names(quick_rules())
    wait_for("scrapes", lambda: (prometheus.number("count_over_time(ragllava_up[1m])") or 0) >= 2)
    wait_for("the rules", lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"})
    wait_for("all alerts to be inactive", lambda: scene.look() == {})
    scene.seen.clear()  # before the first scrape there was no server

    for alert, cause in causes.items():
        make_cause(scene, alert, cause)
        if alert == "RagllavaMetricsSlow":
            wait_for("RagllavaMetricsSlow to fire", lambda: scene.fires("RagllavaMetricsSlow"))
            scene.second.stop()  # for its figures would hide that those of the first server are gone
    wait_for("all of them to fire", lambda: bool(scene.look()) and scene.seen >= set(causes))

    # A scrape that takes too long is a server that is away, too, for a moment.
    wait_for("the server to be scraped", lambda: "RagllavaDown" not in scene.look())
    scene.first.proxy.cut()
    wait_for("RagllavaDown without a database", lambda: scene.fires("RagllavaDown"))
    scene.first.proxy.heal()
    wait_for("the database to be back", lambda: "RagllavaDown" not in scene.look())
    scene.first.stop()
    wait_for("RagllavaDown without a server", lambda: scene.fires("RagllavaDown"))
