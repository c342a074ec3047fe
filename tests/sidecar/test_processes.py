"""Goal: no log, orphan, hung or killed worker stops requests or the end. Method: real processes, signals and pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.proxy.inputs import get
from tests.proxy.wire import Client, Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.wall_clock

HELD_BY_A_PIPE = 4000  # lines of failed exchanges: more than a pipe of 64 KiB takes


class Sidecar:
    """A sidecar in a process of its own, whose standard error goes where the test says."""

    def __init__(self, *flags: str, stderr: int = subprocess.DEVNULL, before: tuple[str, ...] = ()) -> None:
        words = [*before, sys.executable, "-m", "ratelimiter", "proxy", "--listen", "127.0.0.1:0", "--admin", "none"]
        self.process = subprocess.Popen(
            [*words, "--limit", "1000000/minute", *flags], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split(" ")[0].removeprefix("http://")

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def pid(self) -> int:
        """The process that supervises."""
        return self.process.pid

    def end(self, within_s: float) -> int:
        """Ask it twice to stop, so that it does not drain, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


async def asked(address: str, count: int = 1) -> list[int]:
    """Return the statuses of *count* requests on one connection, or of those before it was closed."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        return [(await Client(reader, writer).exchange(get(b"/x"))).status for _ in range(count)]
    finally:
        writer.close()


async def served(address: str) -> None:
    """Wait until a request is answered with 200."""
    for _ in range(1000):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, AssertionError):
            assert [200] == await asked(address)
            return
        await asyncio.sleep(0.01)
    raise AssertionError(address)


def children(pid: int) -> list[int]:
    """Return the process ids of the children of *pid* that are not zombies."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z":
                found.append(int(child))
    return found


async def until(said: object, what: str, within_s: float = 20) -> None:
    """Wait until the function *said* returns True."""
    for _ in range(int(within_s / 0.01)):
        if said():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async with Upstream().serving() as service:
        yield f"http://127.0.0.1:{service.port}"


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a pipe that is full and that no process reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_diagnostic_log_that_is_not_read_stops_nothing(workers: str, unread: int) -> None:
    """Each exchange fails and is a line; standard error takes none. Requests go on, and SIGTERM ends it (C1)."""
    with Sidecar("--upstream", "http://127.0.0.1:9", "--workers", workers, stderr=unread) as sidecar:
        statuses = await asyncio.wait_for(asked(sidecar.address, HELD_BY_A_PIPE // 10), 60)

        assert {502} == set(statuses)
        assert 0 == await asyncio.to_thread(sidecar.end, 15)


async def test_an_access_log_that_is_not_read_stops_nothing(upstream: str) -> None:
    """`--access-log -` into a pipe that no process reads: requests go on, and SIGTERM ends it (C7)."""
    with Sidecar("--upstream", upstream, "--access-log", "-") as sidecar:
        # The reader of the first line is this test, which reads no further.
        for _ in range(8):
            assert {200} == set(await asyncio.wait_for(asked(sidecar.address, 250), 60))

        assert 0 == await asyncio.to_thread(sidecar.end, 15)


async def test_workers_that_are_killed_together_are_replaced_together(upstream: str) -> None:
    """Four at once are four again without a pause for each (C10)."""
    with Sidecar("--upstream", upstream, "--workers", "4") as sidecar:
        await served(sidecar.address)
        await until(lambda: len(children(sidecar.pid)) == 4, "four are there")
        before = set(children(sidecar.pid))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(set(children(sidecar.pid)) - before) == 4, "four others are there")
        await served(sidecar.address)

        assert 0 == await asyncio.to_thread(sidecar.end, 15)


async def test_a_worker_that_stands_still_is_replaced(upstream: str) -> None:
    """A stopped worker gives no heartbeat: it is killed, and another takes its place (C10)."""
    with Sidecar("--upstream", upstream, "--workers", "2") as sidecar:
        await served(sidecar.address)
        await until(lambda: len(children(sidecar.pid)) == 2, "two are there")
        stopped = children(sidecar.pid)[0]
        os.kill(stopped, signal.SIGSTOP)
        await until(lambda: stopped not in children(sidecar.pid), "the stopped one is gone", within_s=40)
        await until(lambda: len(children(sidecar.pid)) == 2, "two are there again")

        assert 0 == await asyncio.to_thread(sidecar.end, 15)


@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace of processes needs root")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_process_one_reaps_orphans(workers: str, upstream: str) -> None:
    """In a container the sidecar is process 1: orphans that end are reaped and end nothing (C2)."""
    assert shutil.which("unshare"), "unshare is missing, which makes a process 1: apt-get install util-linux"
    script = '(setsid sh -c "sleep 0.3; exit 7" &); exec "$@"'
    entering = ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "enter")
    with Sidecar("--upstream", upstream, "--workers", workers, before=entering) as sidecar:
        await served(sidecar.address)
        (first,) = children(sidecar.pid)  # unshare's child is process 1
        for _ in range(3):
            await asyncio.to_thread(leave_an_orphan, first)
        await until(lambda: not zombies(first), "no zombie is left")
        await served(sidecar.address)
        os.kill(first, signal.SIGTERM)
        os.kill(first, signal.SIGTERM)

        assert 0 == await asyncio.to_thread(sidecar.process.wait, 15)


def leave_an_orphan(pid: int) -> None:
    """Start a process in the namespace of *pid* whose parent ends before it."""
    words = ["nsenter", "-t", str(pid), "-p", "sh", "-c", "(setsid sh -c 'sleep 0.1; exit 3' &) ; exit 0"]
    subprocess.run(words, check=True, timeout=10)


def zombies(pid: int) -> list[int]:
    """Return the children of *pid* that have ended and were not reaped."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return sorted({int(child) for child in listed} - set(children(pid)))
