"""A home's lock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ragllava.local.home import Home, HomeLock
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
