"""Several processes that do the same work: started, restarted when they fall, stopped together."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESTART_AFTER_S = 1.0  # so that a worker that cannot start does not keep the machine busy


def supervise(
    work: Callable[[int], None], count: int, *, stopping: Callable[[], None], ended: Callable[[int], None]
) -> int:
    """Run *work* in *count* processes until they are told to stop.

    SIGTERM, SIGINT and SIGHUP reach every worker. One that ends before it was told to is replaced.

    Args:
        work: what a worker does; its argument is the worker's number, from 0. Its process ends with it. The signals
            are blocked until it unblocks them.
        count: how many.
        stopping: is called in this process once, when the first signal to stop comes.
        ended: is called in this process with the process id of each worker that has ended.

    Returns:
        The exit status: 0, or 1 if a worker that was told to stop has failed to.
    """
    workers: dict[int, int] = {}
    told = False

    def pass_on(number: int, _: object) -> None:
        nonlocal told
        if number != signal.SIGHUP and not told:
            told = True
            stopping()
        for pid in list(workers):
            os.kill(pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    for index in range(count):
        workers[_start(work, index)] = index
    status = 0
    while workers:
        pid, result = os.wait()
        index = workers.pop(pid)
        ended(pid)
        code = os.waitstatus_to_exitcode(result)
        if told:
            status = status or int(code != 0)
            continue
        log.error("worker %d has ended (%d) and is replaced", index, code)
        time.sleep(RESTART_AFTER_S)
        if not told:
            workers[_start(work, index)] = index
    return status


def _start(work: Callable[[int], None], index: int) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until the worker knows what to do with them
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return pid
    code = 1
    try:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        work(index)
        code = 0
    except Exception:
        log.exception("worker %d fails", index)
    finally:
        logging.shutdown()
        os._exit(code)
