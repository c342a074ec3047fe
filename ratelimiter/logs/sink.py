"""A file of lines that never holds up its writers: a bounded queue, and a thread that empties it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

STDOUT = "-"
PENDING_LINES_MAX = 10_000
PENDING_BYTES_MAX = 8 << 20
CLOSE_S = 1.0  # the longest that the end of the process waits for a reader or a disk
TICK_S = 1.0  # between two calls of `on_tick`


class Sink:
    """Appends lines to a file descriptor, in a thread.

    `write` returns at once, whatever the file does: a pipe that is not read, a full disk, a slow one. If the queue is
    full, the line is lost. If the file cannot be written, all that wait for it are. Lost lines are counted in `lost`.
    A line that was cut in the middle is ended before the next begins, so that it damages no other.

    Usable after a fork: each process has its own queue and thread. Call `write` from one thread at a time.

    Args:
        fd: of the file; it stays open.
        gather_s: how long a line may wait for others to be written with it.
        on_tick: is called in the thread about once a second while lines come.

    Attributes:
        lost: lines that were not written, since the process began.
        broken: the reason for which the last write failed; empty if it did not.
    """

    def __init__(self, fd: int, *, gather_s: float = 0.0, on_tick: Callable[[], None] | None = None) -> None:
        self.fd = fd
        self.lost = 0
        self.broken = ""
        self._gather_s = gather_s
        self._on_tick = on_tick
        self._pid = 0
        self._begin()

    def _begin(self) -> None:
        self._lines: list[bytes] = []
        self._offered = 0  # bytes, of which only the writer's side adds
        self._done = 0  # bytes, of which only the thread adds
        self._torn = False
        self._closing = False
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Return the number of lines that wait."""
        return len(self._lines)

    def write(self, line: bytes) -> bool:
        """Queue *line*, which ends in a newline; return False if it is lost."""
        if self._thread is None or self._pid != os.getpid():
            self._start()
        if len(self._lines) >= PENDING_LINES_MAX or self._offered - self._done + len(line) > PENDING_BYTES_MAX:
            self.lost += 1
            return False
        self._offered += len(line)
        self._lines.append(line)
        if not self._awake.is_set():
            self._awake.set()
        return True

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what waits, for *timeout_s* at most; what is left then is lost."""
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return
        self._closing = True
        self._awake.set()
        thread.join(timeout_s)
        self._thread = None

    def _start(self) -> None:
        if self._pid != os.getpid():
            self._begin()  # after a fork: what waited belongs to the parent
        self._pid = os.getpid()
        # A daemon: a write that never returns must not keep the process.
        self._thread = threading.Thread(target=self._run, name="log", args=(self._awake,), daemon=True)
        self._thread.start()

    def _run(self, awake: threading.Event) -> None:
        while not self._closing or self._lines:
            awake.wait(TICK_S)
            if awake.is_set() and self._gather_s and not self._closing:
                time.sleep(self._gather_s)
            awake.clear()
            lines, self._lines = self._lines, []
            if lines:
                self._append(lines)
            if self._on_tick is not None:
                self._on_tick()

    def _append(self, lines: list[bytes]) -> None:
        text = memoryview(b"".join([b"\n", *lines] if self._torn else lines))
        start = int(self._torn)
        written = 0
        try:
            while written < len(text):
                written += os.write(self.fd, text[written:])
            self._torn = False
            self.broken = ""
        except OSError as fault:
            self.broken = fault.strerror or str(fault)
            self._torn = (self._torn and not written) or (written > 0 and text[written - 1] != ord("\n"))
            whole = bytes(text[start:written]).count(b"\n")
            self.lost += len(lines) - whole
        finally:
            self._done += len(text) - start


def open_place(place: str, what: str) -> int:
    """Return a descriptor to append to the file *place*; that of standard output for `-`.

    Args:
        place: path of a file, or `-`.
        what: of the file, for the error's message.

    Raises:
        ConfigError: the file cannot be opened.
    """
    if place == STDOUT:
        return 1
    try:
        return os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        msg = f"{what}: {place!r} cannot be opened ({reason}); name a file that this process may write, or -"
        raise ConfigError(msg) from None
