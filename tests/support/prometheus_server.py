"""A real Prometheus for tests, and what it says."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def kept_port() -> Iterator[int]:
    """A port that the system gives to nobody else before the end of the block. A server that allows the reuse of
    addresses may listen on it, as ours and Prometheus do."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield int(keeper.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server that runs, by its address. While it starts, it has no answers."""

    url: str
    pool: PoolManager

    def ask(self, path: str, **fields: str) -> dict[str, Any]:
        """The data of an answer of its API; {} while there is none."""
        try:
            response = self.pool.request("GET", f"{self.url}/api/v1/{path}", fields=fields)
        except HTTPError:
            return {}
        data: dict[str, Any] = response.json()["data"] if response.status == 200 else {}
        return data

    def number(self, query: str) -> float | None:
        """The first number of a query's result; None without one."""
        result = self.ask("query", query=query).get("result", [])
        return float(result[0]["value"][1]) if result else None

    def rules(self) -> list[dict[str, Any]]:
        """All rules as they were evaluated last."""
        return [rule for group in self.ask("rules").get("groups", []) for rule in group["rules"]]

    def alerts(self) -> dict[str, set[str]]:
        """The states, pending or firing, of each alert that is not inactive, by its name. Fails without an answer."""
        states: dict[str, set[str]] = {}
        for alert in self.ask("alerts")["alerts"]:
            states.setdefault(alert["labels"]["alertname"], set()).add(alert["state"])
        return states

    def reload(self) -> None:
        """Read the configuration and the rules again; alerts whose rule is the same keep their state."""
        response = self.pool.request("POST", f"{self.url}/-/reload")
        assert response.status == 200, response.data


@contextmanager
def running_prometheus(
    folder: Path, rules: Path, targets: Mapping[str, str], evaluation: str = "1s"
) -> Iterator[Prometheus]:
    """It scrapes each target as often as `targets` says, by address and interval: `{"127.0.0.1:8601": "1s"}`."""
    scrapes = [
        {"job_name": target, "scrape_interval": interval, "scrape_timeout": interval}
        | {"static_configs": [{"targets": [target]}]}
        for target, interval in targets.items()
    ]
    configuration = {
        "global": {"evaluation_interval": evaluation},
        "rule_files": [str(rules)],
        "scrape_configs": scrapes,
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    with kept_port() as port:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-lifecycle",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with PoolManager(retries=False, timeout=60) as pool:
                yield Prometheus(f"http://127.0.0.1:{port}", pool)
        finally:
            process.kill()
            process.wait()
