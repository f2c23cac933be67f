"""Rules and dashboard: each alert fires from its cause and not without it, and every expression names a metric."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ragllava.client import ALL_METRICS
from tests.support.metrics_page import PAGE, RULES, metrics_section, section_of

INFRA = RULES.parent
DASHBOARD: dict[str, Any] = json.loads((INFRA.parent / "grafana" / "ragllava.json").read_text())
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool of Prometheus is not installed")

# What a system without trouble shows.
_WELL = {
    "ragllava_up": "1x600",
    "ragllava_scrape_seconds": "0.1x600",
    "ragllava_tick_age_seconds": "3x600",
    'ragllava_queue_depth{queue="query"}': "5x600",
    'ragllava_worker_up{queue="query"}': "1x600",
    'ragllava_leases{queue="query",state="running"}': "1x600",
    'ragllava_leases{queue="query",state="overdue"}': "0x600",
    'ragllava_jobs_total{kind="answer",result="completed"}': "0+1x600",
    'ragllava_jobs_total{kind="answer",result="failed"}': "3x600",
    'ragllava_questions_total{stage="answer",result="answered"}': "0+100x600",
    'ragllava_questions_total{stage="answer",result="failed"}': "0+1x600",
    'ragllava_faults{room="events",persistent="no"}': "1x600",
    "ragllava_schedule_lateness_seconds": "2x600",
    "ragllava_results_waiting": "0x600",
    "ragllava_deliveries_waiting": "3x600",
    "ragllava_mailings_given_up_total": "2x600",
    "ragllava_webhooks_given_up_total": "2x600",
    "ragllava_change_events_waiting": "50000-10x600",
    "ragllava_removals_held": "0x600",
    'ragllava_gaps{reason="lost"}': "0x600",
    'ragllava_gaps{reason="waiting"}': "7x600",
    "ragllava_disk_free_bytes": "50000000000x600",
    "ragllava_disk_size_bytes": "100000000000x600",
}
# What differs when an alert fires; None: the series is absent. Then the labels of the alert.
_CAUSES: dict[str, tuple[dict[str, str | None], dict[str, str]]] = {
    "RagllavaDown": ({"ragllava_up": "0x600", "ragllava_tick_age_seconds": None}, {}),
    "RagllavaNoTick": ({"ragllava_tick_age_seconds": "0+60x600"}, {}),
    "RagllavaNoWorker": ({'ragllava_worker_up{queue="query"}': "0x600"}, {"queue": "query"}),
    "RagllavaQueueStuck": ({'ragllava_leases{queue="query",state="running"}': "0x600"}, {"queue": "query"}),
    "RagllavaLeasesOverdue": ({'ragllava_leases{queue="query",state="overdue"}': "1x600"}, {"queue": "query"}),
    "RagllavaJobsFail": ({'ragllava_jobs_total{kind="answer",result="failed"}': "3+1x600"}, {"kind": "answer"}),
    "RagllavaQuestionsFail": ({'ragllava_questions_total{stage="answer",result="failed"}': "0+10x600"}, {}),
    "RagllavaFaults": ({'ragllava_faults{room="results",persistent="yes"}': "1x600"}, {"room": "results"}),
    "RagllavaScheduleLate": ({"ragllava_schedule_lateness_seconds": "0+60x600"}, {}),
    "RagllavaResultsWaiting": ({"ragllava_results_waiting": "1x600"}, {}),
    "RagllavaDeliveriesWaiting": ({"ragllava_deliveries_waiting": "101x600"}, {}),
    "RagllavaMailingsGivenUp": ({"ragllava_mailings_given_up_total": "2+1x600"}, {}),
    "RagllavaWebhooksGivenUp": ({"ragllava_webhooks_given_up_total": "2+1x600"}, {}),
    "RagllavaEventsWaiting": ({"ragllava_change_events_waiting": "2000+1x600"}, {}),
    "RagllavaRemovalsHeld": ({"ragllava_removals_held": "1x600"}, {}),
    "RagllavaGaps": ({'ragllava_gaps{reason="lost"}': "1x600"}, {"reason": "lost"}),
    "RagllavaDiskLow": ({"ragllava_disk_free_bytes": "1000000000x600"}, {}),
    "RagllavaMetricsSlow": ({"ragllava_scrape_seconds": "5x600"}, {}),
}
# Neither server runs, or the maintenance worker has never run.
_FURTHER: list[tuple[str, dict[str, str | None]]] = [
    ("RagllavaDown", dict.fromkeys(_WELL)),
    ("RagllavaNoTick", {"ragllava_tick_age_seconds": None}),
]
_AT = "2h"


def _series(changes: dict[str, str | None]) -> list[dict[str, str]]:
    """Each from two servers, which show the same: no alert fires twice."""
    lines = []
    for name, values in (_WELL | changes).items():
        for server in ("a", "b") if values is not None else ():
            labels = f'{name[:-1]},instance="{server}"}}' if name.endswith("}") else f'{name}{{instance="{server}"}}'
            lines.append({"series": labels, "values": str(values)})
    return lines


def _firing(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """What promtool must see: labels and annotations of the rule, filled in."""
    rule = ALERTS[name]
    filled = {
        key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: labels[match[1]], value)
        for key, value in rule["annotations"].items()
    }
    return {"exp_labels": rule["labels"] | labels, "exp_annotations": filled}


def _case(changes: dict[str, str | None], fires: str | None, labels: dict[str, str]) -> dict[str, Any]:
    expected = [
        {"eval_time": _AT, "alertname": name, "exp_alerts": [_firing(name, labels)] if name == fires else []}
        for name in ALERTS
    ]
    return {"interval": "1m", "input_series": _series(changes), "alert_rule_test": expected}


@needs_promtool
def test_each_alert_fires_alone_from_its_cause(tmp_path: Path) -> None:
    assert set(_CAUSES) == set(ALERTS)
    cases = [_case({}, None, {})]
    cases += [_case(changes, name, labels) for name, (changes, labels) in _CAUSES.items()]
    cases += [_case(changes, name, {}) for name, changes in _FURTHER]
    tests = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(tests))
    checked = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_promtool_accepts_rules_and_configuration() -> None:
    for what, file in (("rules", RULES), ("config", INFRA / "prometheus.yml")):
        checked = subprocess.run(["promtool", "check", what, file], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def _expressions() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return targets + [rule["expr"] for group in GROUPS for rule in group["rules"]]


def test_every_expression_names_exported_metrics() -> None:
    exported = {metric.name for metric in ALL_METRICS} | RECORDED
    for metric in ALL_METRICS:
        if metric.type == "histogram":
            exported |= {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")}
    expressions = _expressions()
    assert len(expressions) > 30
    for expression in expressions:
        named = set(re.findall(r"ragllava[a-z0-9_:]*", expression))
        assert named, expression
        assert named <= exported, expression


def test_every_metric_is_shown_or_watched() -> None:
    named = set(re.findall(r"ragllava_[a-z_]+", " ".join(_expressions())))
    named |= {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
    assert {metric.name for metric in ALL_METRICS} <= named


def test_labels_are_bounded() -> None:
    allowed = {"kind", "state", "result", "stage", "queue", "phase", "role", "room", "persistent", "reason"}
    assert {label for metric in ALL_METRICS for label in metric.labels} <= allowed


def test_the_page_shows_the_metrics_and_the_alerts() -> None:
    assert section_of(PAGE.read_text(encoding="utf-8")) == metrics_section(), "run `make docs`"
