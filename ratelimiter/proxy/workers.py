"""Several processes that do the same work: started, watched, replaced when they fall or hang, stopped together."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Beat = Callable[[], None]

log = logging.getLogger(__name__)

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
PASSED_ON = frozenset({*STOPPING, signal.SIGHUP})
WATCHED = frozenset({*PASSED_ON, signal.SIGCHLD})
LOOK_EVERY_S = 1.0
HUNG_AFTER_S = 10.0  # without a heartbeat; a worker sends one each second
START_WITHIN_S = 30.0  # to the first heartbeat
SETTLED_AFTER_S = 10.0  # a worker that ends sooner has failed to start, and its replacement waits
BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # before a replacement, by the number of such failures in a row
STOP_WITHIN_S = 60.0


@dataclass(slots=True)
class _Worker:
    """One place among the workers, whichever process fills it now."""

    index: int
    pid: int = 0  # 0 while none runs
    started_s: float = 0.0
    start_at_s: float = 0.0  # for a place without a process
    failures: int = 0  # in a row, each soon after its start
    killed: bool = False


class Supervisor:
    """Runs *work* in *count* processes until they are told to stop.

    SIGTERM, SIGINT and SIGHUP reach every worker. A worker that ends before it was told to is replaced at once, unless
    it keeps failing soon after its start. One that gives no heartbeat for `HUNG_AFTER_S` (stopped, or stuck in one
    call) is killed and replaced. Children that are not workers are reaped: as process 1 a supervisor inherits every
    orphan of the container.

    Args:
        work: what a worker does: its number, from 0, and a function to call once a second, its heartbeat. The process
            ends when it returns. The signals are blocked until it unblocks them.
        count: how many.
        stopping: is called in this process once, when the first signal to stop comes.
        ended: is called in this process with the process id of each worker that has ended.
        stop_within_s: the time that workers have to end after the first signal; those left are killed then.
    """

    def __init__(
        self,
        work: Callable[[int, Beat], None],
        count: int,
        *,
        stopping: Callable[[], None],
        ended: Callable[[int], None],
        stop_within_s: float = STOP_WITHIN_S,
    ) -> None:
        self._work = work
        self._stopping = stopping
        self._ended = ended
        self._stop_within_s = stop_within_s
        self._workers = [_Worker(index) for index in range(count)]
        self._beats = mmap.mmap(-1, 8 * count)  # shared with the workers: when each has last given a heartbeat
        self._stop_at_s: float | None = None
        self._looked_s = time.monotonic()
        self._status = 0

    def run(self) -> int:
        """Run until every worker has ended.

        Returns:
            The exit status: 0, or 1 if a worker that was told to stop has failed to.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        try:
            self._start_due()
            while self._stop_at_s is None or any(worker.pid for worker in self._workers):
                told = signal.sigtimedwait(WATCHED, LOOK_EVERY_S)
                if told is not None and told.si_signo in PASSED_ON:
                    self._pass_on(told.si_signo)
                self._reap()
                self._look()
                self._start_due()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        return self._status

    def _pass_on(self, number: int) -> None:
        if number in STOPPING and self._stop_at_s is None:
            self._stop_at_s = time.monotonic() + self._stop_within_s
            self._stopping()
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)

    def _reap(self) -> None:
        """Take note of each child that has ended, one of ours or an orphan."""
        while True:
            try:
                pid, result = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for worker in self._workers:
                if worker.pid == pid:
                    self._note_end(worker, os.waitstatus_to_exitcode(result))

    def _note_end(self, worker: _Worker, code: int) -> None:
        pid, worker.pid = worker.pid, 0
        self._ended(pid)
        if self._stop_at_s is not None:
            self._status = self._status or int(code != 0)
            return
        now_s = time.monotonic()
        worker.failures = 0 if now_s - worker.started_s >= SETTLED_AFTER_S else worker.failures + 1
        # The first end is replaced at once, however young the worker was: it may well have been killed.
        worker.start_at_s = now_s + BACKOFF_S[min(max(0, worker.failures - 1), len(BACKOFF_S) - 1)]
        log.error("worker %d has ended (%d) and is replaced", worker.index, code)

    def _look(self) -> None:
        """Kill the workers that hang, and after the time to stop all that are left."""
        now_s = time.monotonic()
        late = now_s - self._looked_s > HUNG_AFTER_S / 2  # we stood still ourselves, so no heartbeat can be judged
        self._looked_s = now_s
        for worker in self._workers:
            if not worker.pid or worker.killed:
                continue
            if self._stop_at_s is not None:
                if now_s >= self._stop_at_s:
                    self._kill(worker, f"did not stop within {self._stop_within_s:g} s")
                continue
            if late:
                self._beat(worker.index)
            beaten_s = struct.unpack_from("d", self._beats, 8 * worker.index)[0]
            if beaten_s and now_s - beaten_s > HUNG_AFTER_S:
                self._kill(worker, f"has given no heartbeat for {now_s - beaten_s:.0f} s")
            elif not beaten_s and now_s - worker.started_s > START_WITHIN_S:
                self._kill(worker, f"has not started within {START_WITHIN_S:g} s")

    def _kill(self, worker: _Worker, reason: str) -> None:
        log.error("worker %d %s and is killed", worker.index, reason)
        worker.killed = True
        os.kill(worker.pid, signal.SIGKILL)

    def _beat(self, index: int) -> None:
        struct.pack_into("d", self._beats, 8 * index, time.monotonic())

    def _start_due(self) -> None:
        if self._stop_at_s is not None:
            return
        for worker in self._workers:
            if not worker.pid and time.monotonic() >= worker.start_at_s:
                struct.pack_into("d", self._beats, 8 * worker.index, 0.0)
                worker.started_s, worker.killed = time.monotonic(), False
                worker.pid = self._fork(worker.index)

    def _fork(self, index: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})  # the others until the worker can take them
            self._work(index, lambda: self._beat(index))
            code = 0
        except Exception:
            log.exception("worker %d fails", index)
        finally:
            logging.shutdown()
            os._exit(code)


def reap_orphans() -> None:
    """Reap every child that has ended. A single process calls this each second if it is process 1 of a container."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
