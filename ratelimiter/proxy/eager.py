"""A coroutine run without a task: most verdicts are there at once, and a task would cost more than they do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result], settle: Callable[[Result | BaseException], None]) -> None:
    """Run *coroutine* as far as it goes now, and on whenever what it waits for is there.

    It may wait for futures and tasks of the running event loop, and must not ask for the current task.

    Args:
        coroutine: not started yet.
        settle: is called once, with what the coroutine returned or raised; before `run` returns if it never waited.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration as end:
        settle(end.value)
    except (Exception, asyncio.CancelledError) as error:
        settle(error)
    else:
        if awaited is None:  # asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(run, coroutine, settle)
            return
        # By this mark asyncio tells a future that was awaited from one that was yielded by mistake.
        awaited._asyncio_future_blocking = False
        awaited.add_done_callback(lambda _: run(coroutine, settle))
