"""The pool of decoder processes: the same results as in this process, and no picture harms another."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterable, Iterator
from functools import partial

import psutil
import pytest
from PIL import Image

from ragllava.errors import DecoderUnavailable, ImageRejected, RejectionClass
from ragllava.imaging.children import Child
from ragllava.imaging.decode import DecodedImage, decode
from ragllava.imaging.sandbox import DecoderPool
from tests.support.picture_files import bomb_png, encoded, grainy, jpeg, quadrants
from tests.support.processes import decoders
from tests.support.waiting import wait_for

GOOD = encoded(quadrants(), "PNG")


def decode_all(
    pool: DecoderPool, items: Iterable[bytes | ImageRejected], shorter_side: int | None = None
) -> Iterator[DecodedImage | ImageRejected]:
    return pool.decode_all(items, lambda decoded: decoded, shorter_side)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_right(result: DecodedImage | ImageRejected) -> bool:
    return isinstance(result, DecodedImage) and result.picture.tobytes() == quadrants().tobytes()


def test_results_come_in_order_and_equal_those_of_decode() -> None:
    numbers = random.Random(5)
    items: list[bytes | ImageRejected] = []
    for number in range(60):
        size = numbers.randrange(1, 500), numbers.randrange(1, 500)
        picture = grainy(size, 60).convert("RGB")
        items.append(jpeg(picture) if number % 2 else encoded(picture, "PNG"))
    items[7] = b"no picture"
    items[20] = ImageRejected(RejectionClass.OTHER, "it was refused before")
    with DecoderPool(2) as pool:
        results = list(decode_all(pool, items, 100))
    assert len(results) == len(items)
    assert results[20] is items[20]
    for item, result in zip(items, results, strict=True):
        if isinstance(result, ImageRejected):
            continue
        assert isinstance(item, bytes)
        expected = decode(item, shorter_side=100)
        assert (result.width, result.height, result.media_type) == (
            expected.width,
            expected.height,
            expected.media_type,
        )
        assert result.picture.tobytes() == expected.picture.tobytes()
    assert [number for number, result in enumerate(results) if isinstance(result, ImageRejected)] == [7, 20]
    assert "text" in str(results[7])


def test_uses_of_pictures_come_in_order_and_rejections_unchanged() -> None:
    pictures = [encoded(Image.new("RGB", (side, 2 * side)), "PNG") for side in range(1, 30)]
    with DecoderPool(2) as pool:
        made = list(pool.decode_all([*pictures, b"", *pictures], lambda decoded: decoded.picture.size))
    expected = [(side, 2 * side) for side in range(1, 30)]
    assert (made[:29], str(made[29]), made[30:]) == (expected, "the file is empty", expected)


def test_an_error_of_a_use_is_raised_and_the_pool_keeps_working() -> None:
    with DecoderPool(1) as pool:
        with pytest.raises(ZeroDivisionError):
            list(pool.decode_all([GOOD] * 9, lambda decoded: 1 // 0))
        assert is_right(next(decode_all(pool, [GOOD])))


def test_it_reads_ahead_but_not_without_bound() -> None:
    taken = 0

    def items() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield GOOD

    with DecoderPool(1) as pool:
        results = decode_all(pool, items())
        assert is_right(next(results))
        assert 1 < taken <= 10
        results.close()  # type: ignore[attr-defined]
        assert [is_right(result) for result in decode_all(pool, [GOOD, GOOD])] == [True, True]


def test_a_picture_that_needs_too_much_memory_is_rejected_alone() -> None:
    big = encoded(Image.new("RGBA", (4_000, 4_000), (1, 2, 3, 4)), "PNG", compress_level=1)
    with DecoderPool(1, memory_bytes=150_000_000) as pool:
        before, rejected, after = decode_all(pool, [GOOD, big, GOOD])
    assert is_right(before)
    assert isinstance(rejected, ImageRejected)
    assert "memory" in str(rejected)
    assert is_right(after)
    assert isinstance(decode(big, max_side=8), DecodedImage)  # only the limit was too low for it


def with_stopped_child(pool: DecoderPool) -> Iterator[bytes]:
    """A good picture for a child that has just been stopped, as if it hung."""
    (child,) = decoders()
    child.suspend()
    wait_for("the child to be stopped", lambda: child.status() == psutil.STATUS_STOPPED, 60)
    yield GOOD


def bytes_in_the_pipe(pool: DecoderPool) -> int:
    """How much the only child of a pool was sent and has not read."""
    process = pool._children[0]._process
    assert process is not None and process.stdin is not None
    (unread,) = struct.unpack("i", fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)))
    return int(unread)


def test_a_child_that_is_slow_for_a_while_is_replaced_and_the_picture_tried_again() -> None:
    with DecoderPool(1, wall_seconds=3) as pool:
        assert is_right(next(decode_all(pool, [GOOD])))
        (first,) = decoders()
        (result,) = decode_all(pool, with_stopped_child(pool))
        assert is_right(result)
        assert first.pid not in [child.pid for child in decoders()]


@pytest.mark.parametrize(
    ("sent", "wall_seconds", "lacks"),
    [(signal.SIGSTOP, 0.4, "is the machine short of processors"), (signal.SIGKILL, 60.0, "short of memory")],
)
def test_children_that_are_always_stopped_or_killed_are_not_the_fault_of_the_picture(
    sent: signal.Signals, wall_seconds: float, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Child._start

    def start_and_signal(child: Child) -> subprocess.Popen[bytes]:
        process = start(child)
        process.send_signal(sent)
        return process

    monkeypatch.setattr(Child, "_start", start_and_signal)
    with DecoderPool(1, wall_seconds=wall_seconds) as pool, pytest.raises(DecoderUnavailable, match=lacks):
        list(decode_all(pool, [GOOD]))
    assert DecoderUnavailable.retryable
    monkeypatch.undo()
    with DecoderPool(1) as pool:
        assert is_right(next(decode_all(pool, [GOOD])))


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(signal.SIGSEGV, "crashed on it"), (signal.SIGPROF, "processor time"), (signal.SIGKILL, None)],
)
def test_a_crash_rejects_the_picture_but_a_kill_from_outside_does_not(sent: signal.Signals, reason: str | None) -> None:
    results: list[DecodedImage | ImageRejected] = []
    with DecoderPool(1) as pool:
        assert is_right(next(decode_all(pool, [GOOD])))
        (child,) = decoders()
        consumer = threading.Thread(target=lambda: results.extend(decode_all(pool, with_stopped_child(pool))))
        consumer.start()
        # One that dies before it is asked is replaced, whatever it died of.
        wait_for("the stopped child to be asked", lambda: bytes_in_the_pipe(pool) > 0, 60)
        child.send_signal(sent)
        if sent != signal.SIGKILL:
            child.resume()
        consumer.join(60)
        assert is_right(next(decode_all(pool, [GOOD])))
    assert len(results) == 1
    if reason is None:
        assert is_right(results[0])
    else:
        assert isinstance(results[0], ImageRejected)
        assert reason in str(results[0])


def test_a_child_that_died_while_idle_costs_nothing() -> None:
    with DecoderPool(1) as pool:
        for _ in range(2):
            assert is_right(next(decode_all(pool, [GOOD])))
            (child,) = decoders()
            child.kill()
            wait_for("the child to be gone", partial(is_gone, child.pid), 30)
        assert is_right(next(decode_all(pool, [GOOD])))


def test_the_processor_time_is_limited_for_each_picture() -> None:
    code = (
        "import time; from ragllava.imaging.decoding import _allow_processor_time as allow\n"
        "def burn(seconds):\n"
        "    end = time.process_time() + seconds\n"
        "    while time.process_time() < end: pass\n"
        "for _ in range(4):\n"
        "    allow(1); burn(0.4)\n"
        "print('still here', flush=True); allow(1); burn(100)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stdout == "still here\n"
    assert finished.returncode == -signal.SIGPROF


def test_children_end_with_the_pool() -> None:
    with DecoderPool(2) as pool:
        list(decode_all(pool, [jpeg()] * 20))
        pids = [child.pid for child in decoders()]
        assert 1 <= len(pids) <= 2
    assert all(is_gone(pid) for pid in pids)
    assert decoders() == []


def test_children_end_when_their_parent_is_killed() -> None:
    code = (
        "import sys, psutil; from ragllava.imaging.sandbox import DecoderPool\n"
        "from tests.unit.imaging.test_decoding import GOOD\n"
        "pool = DecoderPool(2); list(pool.decode_all([GOOD] * 8, id))\n"
        "print(*[child.pid for child in psutil.Process().children()], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        assert not any(is_gone(pid) for pid in pids)
        parent.kill()
    for pid in pids:
        wait_for("the child to be gone", partial(is_gone, pid), 30)


def test_children_know_no_passwords_and_ignore_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_S3_SECRET_KEY", "hunter2")
    with DecoderPool(1) as pool:
        assert is_right(next(decode_all(pool, [GOOD])))
        (child,) = decoders()
        assert "hunter2" not in str(child.environ())
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        assert is_right(next(decode_all(pool, [GOOD])))
        assert [running.pid for running in decoders()] == [child.pid]


@pytest.mark.parametrize(("program", "message"), [("/bin/false", "status 1"), ("/no/such/program", "cannot start")])
def test_a_pool_that_cannot_start_says_so_instead_of_rejecting_pictures(
    program: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with DecoderPool(1) as pool, pytest.raises(DecoderUnavailable, match=message):
        list(decode_all(pool, [GOOD]))
    monkeypatch.undo()
    assert decoders() == []


def test_a_child_loads_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, ragllava.imaging.sandbox; print([m for m in ('numpy', 'torch', 'sqlalchemy') if m in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_bomb_of_pixels_is_rejected_by_its_header() -> None:
    with DecoderPool(1, memory_bytes=150_000_000) as pool:
        (rejected,) = decode_all(pool, [bomb_png()])
    assert isinstance(rejected, ImageRejected)
    assert "million" in str(rejected)
