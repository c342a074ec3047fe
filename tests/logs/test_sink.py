"""Goal: no file stops its writer. Method: pipes without a reader, a full device, forks; the thread is waited for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ratelimiter.logs.sink import PENDING_BYTES_MAX, PENDING_LINES_MAX, Sink
from tests.stores.redis_server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def settled(sink: Sink) -> None:
    """Wait until the thread has tried to write all lines."""
    wait_until(lambda: sink._offered == sink._done, "the lines are tried", within_s=10)


@pytest.fixture
def full() -> Iterator[int]:
    """A descriptor on a device that is always full."""
    fd = os.open("/dev/full", os.O_WRONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


@pytest.mark.parametrize("line", [b"x" * 99 + b"\n", b"x" * 99_999 + b"\n"])
def test_a_pipe_that_is_not_read_bounds_lines_and_bytes(pipe: tuple[int, int], line: bytes) -> None:
    """Short lines meet the bound on lines, long ones that on bytes; `write` returns each time."""
    sink = Sink(pipe[1])
    taken = sum(sink.write(line) for _ in range(3 * PENDING_LINES_MAX))

    assert 3 * PENDING_LINES_MAX == taken + sink.lost
    assert len(sink) <= PENDING_LINES_MAX
    assert sink._offered - sink._done <= PENDING_BYTES_MAX
    os.set_blocking(pipe[0], False)
    sink.close(timeout_s=0)


def test_closing_waits_no_longer_than_it_is_told(pipe: tuple[int, int]) -> None:
    """The end of a process does not depend on a reader."""
    sink = Sink(pipe[1])
    for _ in range(1000):
        sink.write(b"x" * 999 + b"\n")
    sink.close(timeout_s=0.01)

    assert 0 == sink.lost


def test_lines_that_a_full_disk_does_not_take_are_counted(full: int) -> None:
    """Each of them is lost and counted, and the reason is known."""
    sink = Sink(full)
    for _ in range(7):
        sink.write(b"line\n")
    settled(sink)

    assert 7 == sink.lost
    assert "No space left on device" == sink.broken
    sink.close()


def test_a_line_that_was_cut_damages_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills in the middle of a line: that line is lost, and the next one begins on a line of its own."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    write = os.write
    answers: list[int | OSError] = [7, OSError(28, "No space left on device")]

    def cut(fd: int, data: bytes) -> int:
        answer = answers.pop(0) if answers else None
        if isinstance(answer, OSError):
            raise answer
        return write(fd, bytes(data[:answer]))

    monkeypatch.setattr("ratelimiter.logs.sink.os.write", cut)
    sink = Sink(fd, gather_s=0.05)
    sink.write(b"one\n")
    sink.write(b"two two\n")
    settled(sink)
    sink.write(b"three\n")
    settled(sink)
    sink.close()
    os.close(fd)

    assert 1 == sink.lost
    assert "" == sink.broken
    assert ["one", "two", "three"] == path.read_text().splitlines()


def test_each_process_writes_its_own_lines(tmp_path: Path) -> None:
    """After a fork nothing is written twice, and both processes write."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sink = Sink(fd)
    sink.write(b"before\n")
    settled(sink)
    child = os.fork()
    if not child:
        sink.write(b"child\n")
        sink.close()
        os._exit(0)
    os.waitpid(child, 0)
    sink.write(b"parent\n")
    sink.close()
    os.close(fd)

    assert ["before", "child", "parent"] == path.read_text().splitlines()
