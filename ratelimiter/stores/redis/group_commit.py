"""Group commit: requests that arrive while a batch is under way share the next one, and each keeps its own deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ratelimiter.errors import StoreError, StoreOverloaded
from ratelimiter.stores.base import SILENT, StoreObserver
from ratelimiter.stores.deadline import GRACE_S, missed, stood_still

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit
    from ratelimiter.stores.redis.script import Settling

REQUESTS_MAX = 128  # of one batch; half a millisecond of the server's time
REQUESTS_WORTH = 16  # so many are worth a batch of their own while another could share them
KEYS_MAX = 256  # of one batch, unless one request alone has more
QUEUE_MAX = 4096  # requests that may wait; a store that serves 100,000 a second has done them in 40 ms
# While the server works on one batch we make the next and read the last: twice as many a second as with one under way
# (tests/benchmarks/redis_store.py). A third gains nothing.
FLIGHTS_MAX = 2


class Waiting:
    """A request on its way to its receipt."""

    __slots__ = ("due_s", "future", "group", "hits")

    def __init__(
        self, hits: Sequence[Hit] | Settling, group: int, future: asyncio.Future[Receipt], due_s: float
    ) -> None:
        self.hits = hits
        self.group = group
        self.future = future
        self.due_s = due_s  # when it gives up, on the event loop's clock

    def settle(self, answer: Receipt | StoreError) -> None:
        """Give the caller its answer, if it still waits. Each gets an exception of its own: they collect tracebacks."""
        if self.future.done():
            return
        if isinstance(answer, StoreError):
            self.future.set_exception(type(answer)(str(answer), answer.kind))
        else:
            self.future.set_result(answer)


class Batch(list[Waiting]):
    """Requests that travel together."""

    __slots__ = ("gone_s",)

    gone_s: float  # when it left


class GroupCommit:
    """The queue in front of one server.

    Not thread-safe; belongs to the event loop that was running when it was made.

    Args:
        depart: is called when requests wait and fewer than *flights_max* batches are under way: time to `take` one.
        overdue: is called when a batch is under way for longer than the deadline. Its callers have been told.
        timeout_ms: how long a caller waits at most.
        observer: is told of every batch that has come back.
        requests_max: of one batch, 1 to 255.
        keys_max: of one batch.
        queue_max: requests that may wait for a batch.
        flights_max: batches under way at a time.
    """

    def __init__(
        self,
        depart: Callable[[], None],
        overdue: Callable[[], None],
        *,
        timeout_ms: int,
        observer: StoreObserver = SILENT,
        requests_max: int = REQUESTS_MAX,
        keys_max: int = KEYS_MAX,
        queue_max: int = QUEUE_MAX,
        flights_max: int = FLIGHTS_MAX,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._depart = depart
        self._overdue = overdue
        self._timeout_s = timeout_ms / 1000
        self._observer = observer
        self._requests_max = requests_max
        self._keys_max = keys_max
        self._queue_max = queue_max
        self._flights_max = flights_max
        self._queue: deque[Waiting] = deque()
        self._flights: list[Batch] = []
        self._called = False  # depart is about to be called
        self._alarm: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of requests that wait for a batch."""
        return len(self._queue)

    def join(self, hits: Sequence[Hit] | Settling, group: int = 0) -> asyncio.Future[Receipt]:
        """Queue a request. Cancelling the future affects no other one; the hits are charged if their batch has left.

        Args:
            hits: what is charged, or settled.
            group: only requests of one group travel together.

        Raises:
            StoreOverloaded: the queue is full.
        """
        if len(self._queue) >= self._queue_max:
            msg = f"{self._queue_max} requests wait already"
            raise StoreOverloaded(msg)
        future: asyncio.Future[Receipt] = self.loop.create_future()
        due_s = self.loop.time() + self._timeout_s
        self._queue.append(Waiting(hits, group, future, due_s))
        if self._alarm is None:
            self._alarm = self.loop.call_at(due_s, self._expire, due_s)
        self.call()
        return future

    def call(self) -> None:
        """Schedule a departure if requests wait and a flight is free, after the requests that are about to join."""
        if not self._called and self._queue and len(self._flights) < self._flights_max:
            self._called = True
            self.loop.call_soon(self._go)

    def take(self) -> Batch:
        """Return the next batch, now under way: `settle` it. Empty if no request waits, or enough are under way.

        If several batches may leave, they share the requests that wait.
        """
        batch = Batch()
        queue, room = self._queue, self._keys_max
        free = self._flights_max - len(self._flights)
        if not free:
            return batch
        share = min(self._requests_max, max(REQUESTS_WORTH, -(-len(queue) // free)))
        while queue and len(batch) < share:
            waiting = queue[0]
            if not waiting.future.done():
                room -= len(waiting.hits)
                if batch and (room < 0 or waiting.group != batch[0].group):
                    break
                batch.append(waiting)
            queue.popleft()
        if batch:
            batch.gone_s = self.loop.time()
            self._flights.append(batch)
        return batch

    def settle(self, batch: Batch, answers: Sequence[Receipt | StoreError] | StoreError) -> None:
        """Answer the requests of a batch: each with its own answer, or all with one error."""
        self._flights.remove(batch)
        self._observer.called(len(batch), self.loop.time() - batch.gone_s)
        if isinstance(answers, StoreError):
            for waiting in batch:
                waiting.settle(answers)
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.settle(answer)
        self.call()

    def dismiss(self, error: StoreError) -> None:
        """Fail all requests that wait for a batch."""
        while self._queue:
            self._queue.popleft().settle(error)

    def close(self) -> None:
        """Cancel the timer. Requests that wait must have been answered."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _go(self) -> None:
        self._called = False
        self._depart()

    def _expire(self, due_s: float, late_s: float = 0) -> None:
        """Answer the requests that are overdue. One timer is enough, as requests are due in the order of joining."""
        self._alarm = None
        now_s = self.loop.time()
        if stood_still(now_s - due_s, late_s, self._timeout_s):
            self._alarm = self.loop.call_at(now_s + GRACE_S, self._expire, now_s + GRACE_S, now_s - due_s)
            return
        error = missed(self._timeout_s, late_s)
        due = [self._expire_each(batch, now_s, error) for batch in self._flights]
        next_s = min((each_s for each_s in due if each_s is not None), default=None)
        while self._queue and (self._queue[0].due_s <= now_s or self._queue[0].future.done()):
            self._queue.popleft().settle(error)
        if next_s is None and self._queue:
            next_s = self._queue[0].due_s
        if any(batch.gone_s + self._timeout_s <= now_s for batch in self._flights):
            self._overdue()
        if next_s is not None:
            self._alarm = self.loop.call_at(next_s, self._expire, next_s)

    @staticmethod
    def _expire_each(batch: Batch, now_s: float, error: StoreError) -> float | None:
        """Answer the requests of *batch* that are due; return when the next one is."""
        for waiting in batch:
            if waiting.due_s > now_s:
                if not waiting.future.done():
                    return waiting.due_s
            else:
                waiting.settle(error)
        return None
