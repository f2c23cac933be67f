"""Runs a server that can listen on TCP ports only, so that other accounts of the machine cannot reach it:
`python -m ragllava.local.secluded [--keep FOLDER]... [--in PORT SOCKET] [--out PORT SOCKET] [--open] [--note FILE]
-- PROGRAM...`

The program gets a network and a temporary folder of its own (namespaces of Linux): nobody else can connect to its
ports, and nobody else can take the names of the files that it makes in /tmp. Folders that lie in /tmp and are named by
`--keep` stay visible. Sockets in the file system are reached from both sides, so they lead in and out: `--in` listens
in the program's network and leads to a socket, `--out` listens outside of it.

Where the system allows no namespaces (some containers, some policies), and with `--open`, the program runs without;
then it has to listen at the port of `--out` itself. The file `--note` then says why; else it
is empty.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ragllava.local.relay import BACKLOG, Relay
from ragllava.whole_files import write_whole

MODULE = "ragllava.local.secluded"  # how it is run

_NEWNS, _NEWUSER, _NEWNET = 0x0002_0000, 0x1000_0000, 0x4000_0000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x8_0000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PR_SET_PDEATHSIG = 1
_TEMPORARY = Path("/tmp")  # noqa: S108 - the one that SeaweedFS uses, whatever TMPDIR says

_libc = ctypes.CDLL(None, use_errno=True)


def seclude(keep: Sequence[Path]) -> None:
    """Move this process, which must have one thread, into a network and a temporary folder of its own.

    Raises OSError where the system does not allow it; then it may have taken effect in part (`why_not_secluded`).
    """
    user, group = os.geteuid(), os.getegid()
    kept = {*keep, *(path.resolve() for path in keep)}
    if _TEMPORARY in kept:
        raise OSError(f"{_TEMPORARY} itself must stay visible; set RAGLLAVA_HOME to a folder in it, or elsewhere")
    try:
        _call("unshare", _NEWNET | _NEWNS)
    except PermissionError:  # not root: as the root of a user namespace, in which we stay who we are
        _call("unshare", _NEWUSER | _NEWNET | _NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _own_temporary_folder(kept)
    _raise_loopback()


def why_not_secluded(keep: Sequence[Path]) -> str | None:
    """Why `seclude` would fail, which a child process tries; None if it would not."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            seclude(keep)
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as reason:
        text = reason.read()
    os.waitpid(child, 0)
    return text or None


def _own_temporary_folder(keep: Iterable[Path]) -> None:
    folder = Path.cwd()
    hidden = [path for path in keep if path.is_relative_to(_TEMPORARY)]
    opened = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in hidden}
    # Else our mounts would be everybody's. What is unmounted outside still goes here, which frees the disk.
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", str(_TEMPORARY), "tmpfs", 0)
    for path, number in opened.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{number}", str(path), None, _MS_BIND | _MS_REC)
        os.close(number)
    os.chdir(folder)  # the same by its new mount


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    words = [word.encode() if word is not None else None for word in (source or "none", target, kind)]
    _call("mount", *words, flags, None)


def _call(name: str, *arguments: object) -> None:
    """A function of the C library that returns 0. Raises OSError."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _raise_loopback() -> None:
    """A new network has a loopback interface that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(handle, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _run(command: Sequence[str], relays: Sequence[tuple[socket.socket, Path]]) -> int:
    """Run the program and the relays until it ends; its exit code."""
    servers = [
        await asyncio.start_server(Relay(path).serve, sock=listener, backlog=BACKLOG) for listener, path in relays
    ]
    program = await asyncio.create_subprocess_exec(*command, preexec_fn=_end_with_parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, partial(_send, program, number))
    code = await program.wait()
    for server in servers:
        server.close()
    return code


def _send(program: asyncio.subprocess.Process, number: int) -> None:
    with suppress(ProcessLookupError):
        program.send_signal(number)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ragllava.local.secluded")
    parser.add_argument("--keep", action="append", default=[], type=Path)
    parser.add_argument("--in", dest="way_in", nargs=2)
    parser.add_argument("--out", dest="way_out", nargs=2)
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--note", type=Path)
    parser.add_argument("command", nargs="+")
    return parser.parse_args(words)


def _relay(port: str, path: str) -> tuple[socket.socket, Path]:
    return socket.create_server(("127.0.0.1", int(port))), Path(path)


def main(words: Sequence[str]) -> int:
    """The exit code of the program."""
    options = _arguments(words)
    relays = []
    keep = [*options.keep, Path(sys.prefix), Path(sys.base_prefix)]  # modules are read from there later
    reason = "it was asked for" if options.open else why_not_secluded(keep)
    if options.note:
        write_whole(options.note, reason or "", 0o600)
    if reason is None:
        if options.way_out:
            relays.append(_relay(*options.way_out))  # made outside, where it stays
        seclude(keep)
    else:
        sys.stderr.write(f"other accounts can connect to the ports of {options.command[0]}: {reason}\n")
    if options.way_in:
        relays.append(_relay(*options.way_in))
    code = asyncio.run(_run(options.command, relays))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
