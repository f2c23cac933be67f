"""The worker fleet with real processes: started, killed, restarted, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ragllava.errors import ServiceUnavailable
from ragllava.local import fleet as fleet_module
from ragllava.local.fleet import WorkerFleet, WorkerSpec, restart_delay_s
from ragllava.local.home import Home
from ragllava.local.processes import is_alive, processes_in
from tests.support.processes import command_of, kill, start_program
from tests.support.waiting import wait_for


@pytest.fixture
def worker_home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


# The workers are small programs: the fleet does not depend on what a worker does.
SLEEPER = "import time; time.sleep(600)"
WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""
POLITE = """
import pathlib, signal, sys
def leave(*_):
    pathlib.Path(sys.argv[1] + ".left").write_text("")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
pathlib.Path(sys.argv[1]).write_text("")
signal.pause()
"""
LAST = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("")
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
pathlib.Path(sys.argv[1] + ".left").write_text("")
"""
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("")
time.sleep(600)
"""


def python(name: str, program: str, *arguments: str) -> WorkerSpec:
    return WorkerSpec(name, (sys.executable, "-c", program, *arguments))


def alive(fleet: WorkerFleet) -> dict[str, int]:
    """Process ids of the workers that run, by name."""
    processes = {worker.spec.name: worker.process for worker in fleet._workers}
    return {name: process.pid for name, process in processes.items() if process is not None and is_alive(process)}


def make_fleet(home: Home, *specs: WorkerSpec, grace_s: float = 10.0) -> WorkerFleet:
    return WorkerFleet(home, specs, is_ready=lambda name, running_for_s: True, grace_s=grace_s)


@contextmanager
def started(fleet: WorkerFleet) -> Iterator[None]:
    fleet.start()
    try:
        yield
    finally:
        fleet.stop()


@pytest.mark.parametrize(
    ("deaths", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 16.0), (6, 30.0), (7, 30.0), (10**6, 30.0)]
)
def test_restart_delay(deaths: int, delay_s: float) -> None:
    assert restart_delay_s(deaths) == delay_s


def test_a_killed_worker_is_restarted_and_its_children_go_with_it(worker_home: Home, tmp_path: Path) -> None:
    note = tmp_path / "child"
    fleet = make_fleet(worker_home, python("a", WITH_CHILD, str(note)), python("b", SLEEPER))
    with started(fleet):
        wait_for("the worker's child", lambda: note.exists() and note.read_text() != "", 60)
        child, before = psutil.Process(int(note.read_text())), alive(fleet)
        os.kill(before["a"], signal.SIGKILL)

        def restarted() -> bool:
            fleet.check()
            return alive(fleet).get("a", before["a"]) != before["a"]

        wait_for("the restart", restarted, 60)
        assert alive(fleet)["b"] == before["b"]
        wait_for("the end of the killed worker's child", lambda: not is_alive(child), 60)
    assert alive(fleet) == {}
    assert processes_in(worker_home.workers) == []


def collected(fleet: WorkerFleet, news: list[str], has_happened: Callable[[], bool]) -> Callable[[], bool]:
    """A condition that checks the fleet each time it is asked, and collects what the fleet says."""

    def check() -> bool:
        news.extend(fleet.check())
        return has_happened()

    return check


def test_a_worker_that_keeps_dying_is_reported_once_and_started_again_until_it_runs(
    worker_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "restart_delay_s", lambda deaths: 0.0)
    starts, cause = tmp_path / "starts", tmp_path / "cause"
    cause.touch()
    program = f"""
import os, time
open({str(starts)!r}, "a").write("x")
if os.path.exists({str(cause)!r}):
    print("no space left"); raise SystemExit(3)
time.sleep(600)
"""
    fleet = make_fleet(worker_home, python("bad", program))
    news: list[str] = []
    with started(fleet):
        many = collected(fleet, news, lambda: starts.exists() and len(starts.read_text()) >= 9)
        wait_for("nine starts", many, 60)
        [line] = news
        assert line.startswith("worker bad died 3 times in a row (no space left); it is started again")
        assert worker_home.load_troubles() == {"bad": line}
        cause.unlink()
        wait_for("the worker to stay", collected(fleet, news, lambda: bool(alive(fleet))), 60)
        monkeypatch.setattr(fleet_module, "_HEALTHY_S", 0.0)
        wait_for("the end of the trouble", collected(fleet, news, lambda: len(news) > 1), 60)
        assert news[1:] == ["worker bad runs again"]
        assert worker_home.load_troubles() == {}


def test_a_worker_that_cannot_be_launched_is_tried_again(
    worker_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "restart_delay_s", lambda deaths: 0.0)
    fleet = make_fleet(worker_home, python("a", SLEEPER))
    with started(fleet):
        log = fleet._workers[0].log
        log.unlink()
        log.mkdir()  # its log cannot be opened, as on a disk without a free inode
        os.kill(alive(fleet)["a"], signal.SIGKILL)
        news: list[str] = []
        wait_for("the report", collected(fleet, news, lambda: bool(news)), 60)
        assert alive(fleet) == {}
        log.rmdir()
        wait_for("the worker", collected(fleet, news, lambda: bool(alive(fleet))), 60)


def test_waiting_for_a_worker_that_keeps_dying_ends(worker_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "restart_delay_s", lambda deaths: 0.0)
    never = WorkerFleet(worker_home, [python("bad", "raise SystemExit(3)")], is_ready=lambda name, seconds: False)
    with started(never), pytest.raises(ServiceUnavailable, match="worker bad died 6 times"):
        never.wait_until_ready(120.0)


def test_waiting_for_a_worker_says_what_it_waits_for(
    worker_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_NEWS_S", 0.2)
    program = "print('loading shard 3 of 9', flush=True)\n" + SLEEPER
    news: list[str] = []

    def is_ready(name: str, running_for_s: float) -> bool:
        return any("loading shard 3 of 9" in line for line in news)

    fleet = WorkerFleet(worker_home, [python("big", program)], is_ready=is_ready)
    with started(fleet):
        fleet.wait_until_ready(120.0, on_news=news.append)
    assert news[0].startswith("waiting for big since ")


def test_ready_workers_are_announced_once(worker_home: Home, tmp_path: Path) -> None:
    marks = {name: tmp_path / name for name in ("a", "b")}
    fleet = WorkerFleet(
        worker_home,
        [python(name, POLITE, str(mark)) for name, mark in marks.items()],
        is_ready=lambda name, seconds: marks[name].exists(),
    )
    announced: list[tuple[str, int]] = []
    with started(fleet):
        fleet.wait_until_ready(120.0, lambda name, pid, seconds: announced.append((name, pid)))
        assert sorted(announced) == sorted(alive(fleet).items())


def test_stop_lets_workers_finish_all_at_the_same_time(worker_home: Home, tmp_path: Path) -> None:
    last, polite = tmp_path / "last", tmp_path / "polite"
    specs = [python("last", LAST, str(last), f"{polite}.left"), python("polite", POLITE, str(polite))]
    fleet = make_fleet(worker_home, *specs, grace_s=120.0)
    fleet.start()
    wait_for("both workers", lambda: polite.exists() and last.exists(), 60)
    fleet.stop()
    assert Path(f"{polite}.left").exists() and Path(f"{last}.left").exists()
    assert processes_in(worker_home.workers) == []


def test_stop_kills_a_deaf_worker(worker_home: Home, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    fleet = make_fleet(worker_home, python("deaf", DEAF, str(deaf)), grace_s=0.5)
    fleet.start()
    wait_for("the worker", deaf.exists, 60)
    fleet.stop()
    assert processes_in(worker_home.workers) == []


def test_workers_end_when_their_supervisor_is_killed(worker_home: Home, tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from ragllava.local.fleet import WorkerFleet, WorkerSpec
from ragllava.local.home import Home
spec = WorkerSpec("a", (sys.executable, "-c", sys.argv[2], sys.argv[3]))
fleet = WorkerFleet(Home(Path(sys.argv[1])), [spec], is_ready=lambda name, seconds: True, grace_s=5)
fleet.start()
print("ready", flush=True)
time.sleep(600)
"""
    note = tmp_path / "child"
    supervisor = start_program(program, worker_home.root, WITH_CHILD, note)
    wait_for("the worker's child", lambda: note.exists() and note.read_text() != "", 60)
    assert len(processes_in(worker_home.workers)) == 3  # worker, child, watchdog
    kill(supervisor)
    wait_for("the watchdog", lambda: not processes_in(worker_home.workers), 60)


def test_orphans_are_ended_at_the_start(worker_home: Home) -> None:
    orphan = subprocess.Popen([sys.executable, "-c", SLEEPER], cwd=worker_home.workers, start_new_session=True)
    fleet = make_fleet(worker_home, python("a", SLEEPER))
    with started(fleet):
        assert orphan.wait(timeout=60) == -signal.SIGTERM
        assert len(alive(fleet)) == 1


def watchdogs_of(home: Home) -> list[psutil.Process]:
    return [process for process in processes_in(home.workers) if "ragllava.local.watchdog" in command_of(process)]


def test_a_killed_watchdog_is_replaced(worker_home: Home) -> None:
    fleet = make_fleet(worker_home, python("a", SLEEPER))
    with started(fleet):
        wait_for("the watchdog", lambda: bool(watchdogs_of(worker_home)), 60)
        [watchdog] = watchdogs_of(worker_home)
        watchdog.kill()

        def replaced() -> bool:
            fleet.check()
            return [process.pid for process in watchdogs_of(worker_home)] not in ([], [watchdog.pid])

        wait_for("a new watchdog", replaced, 60)
        assert len(alive(fleet)) == 1
