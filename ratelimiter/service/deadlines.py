"""Decisions that come before the caller gives up, whatever the store does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.proxy import eager

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit
    from ratelimiter.stores.base import Store

MARGIN_S = 0.005  # for the answer to be written, to travel and to be read
TICK_S = 0.002  # between two looks at the deadlines, while a call waits


class Deadlines:
    """Charges hits with a store, and answers without it when time is up: each rule then does what its `on_store_error`
    says. The store may charge such hits all the same.

    Args:
        store: that is asked.
        loop: that callers run on.
        timeout_s: within which the store answers or fails by itself.
        in_task: True if the store uses asyncio's timeouts, which are for tasks.
    """

    def __init__(
        self, store: Store, loop: asyncio.AbstractEventLoop, timeout_s: float, *, in_task: bool = False
    ) -> None:
        self._store = store
        self._loop = loop
        self._timeout_s = timeout_s
        self._in_task = in_task
        self._waiting: dict[asyncio.Future[Receipt], tuple[float, Sequence[Hit]]] = {}
        self._ticking = False
        self.missed = 0  # decisions made without the store for want of time

    async def charge(self, hits: Sequence[Hit], due_s: float | None) -> Receipt:
        """Charge *hits*, with an answer before *due_s* on the event loop's clock; None for whenever it is there."""
        spent = self._store.spend(hits)
        if spent is not None:
            return spent
        if due_s is None or due_s - MARGIN_S - self._loop.time() > self._timeout_s:
            return await self._charging(hits)
        answers: list[Receipt | BaseException] = []
        future: asyncio.Future[Receipt] | None = None

        def answered(answer: Receipt | BaseException) -> None:
            if future is None:
                answers.append(answer)
            elif not future.done():
                if isinstance(answer, BaseException):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

        eager.run(self._charging(hits) if self._in_task else self._store.charge(hits), answered)
        if answers:
            answer = answers[0]
            if isinstance(answer, BaseException):
                raise answer
            return answer
        future = self._loop.create_future()
        self._waiting[future] = due_s - MARGIN_S, hits
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK_S, self._tick)
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def _charging(self, hits: Sequence[Hit]) -> Receipt:
        charging = self._store.charge(hits)
        return await (self._loop.create_task(charging) if self._in_task else charging)

    def _tick(self) -> None:
        now_s = self._loop.time()
        for future, (due_s, hits) in list(self._waiting.items()):
            if due_s <= now_s and not future.done():
                receipt = self._store.charge_without_store(hits)
                if receipt is not None:
                    self.missed += 1
                    future.set_result(receipt)
        self._ticking = bool(self._waiting)
        if self._ticking:
            self._loop.call_later(TICK_S, self._tick)
