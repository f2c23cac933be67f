"""A home's lock, and the ports that its services keep."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from ragllava.local.home import Home, HomeLock, choose_ports
from ragllava.local.processes import is_alive


@pytest.fixture
def worker_home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def test_a_lock_file_of_a_dead_owner_does_not_lock(worker_home: Home) -> None:
    worker_home.lock_file.write_text(json.dumps({"pid": os.getpid(), "started_at": 1.0}))
    lock = HomeLock(worker_home)
    assert lock.owner() is None
    lock.acquire()
    holder = lock.owner()
    assert holder is not None and holder.pid == os.getpid() and is_alive(holder)
    lock.release()
    assert lock.owner() is None


def test_kept_ports_are_chosen_again_and_none_twice() -> None:
    taken: set[int] = set()
    first = choose_ports([], 3, taken)
    assert choose_ports(first, 3, set()) == first
    assert choose_ports(first, 2, set()) != first, "another number of ports was asked for"
    assert not set(first) & set(choose_ports(first, 3, taken))


def test_ports_with_twins_do_not_meet() -> None:
    taken: set[int] = set()
    ports = choose_ports([], 5, taken, twin=10_000) + choose_ports([], 5, taken, twin=10_000)
    assert len({*ports, *(port + 10_000 for port in ports)}) == 20
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", ports[0] + 10_000))
        assert choose_ports(ports[:1], 1, set(), twin=10_000) != ports[:1]
