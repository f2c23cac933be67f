"""What hostile code in a decoder could still do, on a Linux that has Landlock and seccomp."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ragllava.imaging.confine import confine
from ragllava.imaging.sandbox import DecoderPool, active_protections
from tests.support.picture_files import jpeg

# What the kernel of a developer's machine and of CI has. Elsewhere the limits on memory and time remain.
PROTECTIONS = ["Landlock", "seccomp"]

# Prints what each attempt came to: the name of its error, or "done".
ATTEMPTS = """
import ctypes, json, os, signal, socket, subprocess, sys, threading
from ragllava.imaging.confine import confine
secret, target, parent = sys.argv[1], sys.argv[2], int(sys.argv[3])
active = confine()

def tgkill():
    if ctypes.CDLL(None, use_errno=True).syscall(TGKILL, parent, parent, 0) != 0:
        raise OSError(ctypes.get_errno(), "refused")

TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
attempts = {
    "read a file": lambda: open(secret).read(),
    "read the passwords of accounts": lambda: open("/etc/passwd").read(),
    "list a folder": lambda: os.listdir(os.path.dirname(secret)),
    "write a file": lambda: open(target, "w"),
    "read the environment of its parent": lambda: open(f"/proc/{parent}/environ", "rb").read(),
    "connect by TCP": lambda: socket.create_connection(("127.0.0.1", 1)),
    "open a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "open a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "start a program": lambda: subprocess.run(["/bin/true"]),
    "fork": os.fork,
    "signal another process": lambda: os.kill(parent, 0),
    "signal a thread of another process": tgkill,
    "start a thread": lambda: threading.Thread(target=int).start(),
    "import a module": lambda: __import__("numpy"),
}
outcomes = {}
for name, attempt in attempts.items():
    try:
        attempt()
        outcomes[name] = "done"
    except OSError as error:
        outcomes[name] = type(error).__name__
print(json.dumps([active, outcomes]))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What a confined process can do, in a folder that everybody can read and write."""
    with tempfile.TemporaryDirectory(prefix="ragllava-tests-") as name:
        folder = Path(name)
        (folder / "secret").write_text("secret")
        folder.chmod(0o777)
        command = [sys.executable, "-c", ATTEMPTS, str(folder / "secret"), str(folder / "new"), str(os.getpid())]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        active, found = json.loads(result.stdout)
        if active != PROTECTIONS:
            pytest.skip(f"Linux {platform.release()} offers {active or 'neither Landlock nor seccomp'}")
        assert sorted(path.name for path in folder.iterdir()) == ["secret"]
        return dict(found)


ALLOWED = {"start a thread", "import a module"}


def test_nothing_but_decoding_is_possible(outcomes: dict[str, str]) -> None:
    assert {name for name, outcome in outcomes.items() if outcome == "done"} == ALLOWED
    assert {outcome for name, outcome in outcomes.items() if name not in ALLOWED} == {"PermissionError"}


def test_decoders_are_confined() -> None:
    """A child reports what is in force in itself, and decodes under it."""
    active = active_protections()
    if active != PROTECTIONS:
        pytest.skip(f"Linux {platform.release()} offers {active or 'neither Landlock nor seccomp'}")
    with DecoderPool(1) as pool:
        [picture] = pool.decode_all([jpeg()], lambda decoded: decoded.picture.size)
        child = pool._children[0]
        assert child._process is not None
        status = Path(f"/proc/{child._process.pid}/status").read_text()
    assert isinstance(picture, tuple)
    assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status


def test_a_system_without_protections_still_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("landlockpy", "seccompy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert confine() == []
