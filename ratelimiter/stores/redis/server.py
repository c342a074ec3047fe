"""One Redis server: a connection that is replaced when it breaks, batches over it, and a control connection."""

from __future__ import annotations

import asyncio
import itertools
import random
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.errors import Kind, StoreError, StoreFault, StoreTimeout, StoreUnavailable
from ratelimiter.stores.base import SILENT, StoreObserver
from ratelimiter.stores.deadline import Deadline
from ratelimiter.stores.redis import script
from ratelimiter.stores.redis.connection import Connection, ScriptMissing, open_connection
from ratelimiter.stores.redis.control import ControlConnection
from ratelimiter.stores.redis.group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from ratelimiter.clock import Clock
    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit
    from ratelimiter.stores.redis.group_commit import Batch
    from ratelimiter.stores.redis.url import Address

    Locate = Callable[[], Awaitable[Address]]

# An attempt that began just before a fault ended is lost, and has to be over in time for another one: this, the longest
# pause and a breaker's probe together are less than a second.
CONNECT_TIMEOUT_MS = 300
CONTROL_IDLE_S = 1.0  # after which the control connection is closed
CONTROL_TIMEOUT_MS = 250  # for what is not hot: longer than a decision may wait, and short of the next look
# The first attempt after a loss is made at once; further ones wait, and not all processes equally long. The longest
# pause is well below a second, because enforcement has to be back within one.
PAUSE_S_MIN = 0.02
PAUSE_S_MAX = 0.3
# By digest, and by digest or with the text; once more if a batch with the text came to nothing just before.
ATTEMPTS_MAX = 3
# We speak to the wrong server: a new connection, to wherever the master is now, is the only help.
MOVED_AWAY = frozenset({Kind.READ_ONLY, Kind.NO_MASTER})


ASKING = b"*1\r\n$6\r\nASKING\r\n"  # serve the next call although the slot is not yours yet


def _ignore(_: object) -> None:
    """Ignore the reply to ASKING: the call after it has a reply of its own."""


class _Call(NamedTuple):
    connection: Connection
    batch: Batch
    requests: script.Requests
    nonce: bytes
    attempt: int  # from 1
    text: bool  # True if the script's text went with it


class Server:
    """One server and the connections to it.

    Not thread-safe; belongs to the event loop that was running when it was made.

    Args:
        locate: where the server is; asked before every connection.
        timeout_ms: how long a caller waits at most.
        clock: Unix time in milliseconds; the server's own when None.
        connect_timeout_ms: for connecting and login; by default `CONNECT_TIMEOUT_MS`, or *timeout_ms* if longer.
        observer: is told of every round trip.
        batching: settings of `GroupCommit`.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        timeout_ms: int,
        clock: Clock | None = None,
        connect_timeout_ms: int | None = None,
        observer: StoreObserver = SILENT,
        **batching: int,
    ) -> None:
        self._locate = locate
        self._clock = clock
        self._connect_timeout_ms = connect_timeout_ms or max(CONNECT_TIMEOUT_MS, timeout_ms)
        self._timeout_ms = timeout_ms
        self._batcher = GroupCommit(self._depart, self._overdue, timeout_ms=timeout_ms, observer=observer, **batching)
        self._loop = self._batcher.loop
        self._connection: Connection | None = None
        self._address: Address
        # Long replies have a connection of their own, so that no charge waits behind them. It goes where charges go: it
        # is opened anew when their connection was, and closed when it is idle.
        self._control: ControlConnection | None = None
        self._control_end: asyncio.TimerHandle | None = None
        self._controlled: Connection | None = None
        self._control_timeout_ms = max(CONTROL_TIMEOUT_MS, timeout_ms)
        self._loop_end: AsyncGenerator[None] | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._failures = 0  # since the last answer
        self._paused_until_s = 0.0
        self._told: Connection | None = None  # which has been sent the script's text, and has not answered yet
        self._error: StoreError = StoreUnavailable("never connected")
        self._nonces = itertools.count(random.getrandbits(48))  # no other process's may match

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that this server belongs to."""
        return self._loop

    def charge(self, hits: Sequence[Hit] | script.Settling, group: int = 0) -> asyncio.Future[Receipt]:
        """Charge *hits* with the next batch; the future fails with a `StoreError`, at the latest at the deadline.

        Args:
            hits: what is charged, or settled.
            group: only requests of one group share a script call; one below 0 is for a slot that this node is about to
                take over.

        Raises:
            StoreOverloaded: too many wait.
        """
        return self._batcher.join(hits, group)

    async def call(self, *words: str | bytes, asking: bool = False) -> object:
        """Send one small command over the connection of the charges, and return its reply.

        Args:
            words: of the command; its reply must be short, as charges wait behind it.
            asking: for a slot that this server is about to take over.

        Raises:
            StoreError: no connection, no answer within the deadline, or an error.
        """
        connection = None
        try:
            async with Deadline(self._timeout_ms):
                connection = await self._connected()
                if asking:
                    connection.send(ASKING, _ignore)
                return await connection.call(*words)
        except StoreTimeout as error:
            if connection is not None:
                # It may owe the answer for ever, and charges would wait behind it.
                self._drop(connection, error)
            raise
        except StoreError as error:
            if connection is not None and (connection.error is not None or error.kind in MOVED_AWAY):
                self._drop(connection, error)
            raise

    async def control(self, *words: str | bytes, asking: bool = False) -> object:
        """Send one command over the control connection to the server that charges go to, and return its reply.

        Args:
            words: of the command.
            asking: for a slot that this server is about to take over.

        Raises:
            StoreError: no connection, no answer in time, or an error.
        """
        async with Deadline(self._control_timeout_ms):
            connection = await self._connected()
            if self._control is None or self._controlled is not connection:
                self._drop_control()
                self._controlled = connection
                self._control = ControlConnection(
                    self._address, timeout_ms=self._control_timeout_ms, connect_timeout_ms=self._connect_timeout_ms
                )
            try:
                return await self._control.call(*words, asking=asking)
            except StoreError as error:
                if error.kind in MOVED_AWAY:
                    self._drop(connection, error)
                raise
            finally:
                if self._control_end is not None:
                    self._control_end.cancel()
                self._control_end = self._loop.call_later(CONTROL_IDLE_S, self._drop_control)

    def _drop_control(self) -> None:
        if self._control_end is not None:
            self._control_end.cancel()
            self._control_end = None
        control, self._control = self._control, None
        if control is not None:
            control.drop()

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.usable:
            self._connection = None
            if self._attempt is None:
                if self._loop.time() < self._paused_until_s:
                    raise type(self._error)(str(self._error), self._error.kind)
                self._attempt = self._loop.create_task(self._try_to_connect())
            await asyncio.wait([self._attempt])
        if self._connection is None:
            raise type(self._error)(str(self._error), self._error.kind)
        return self._connection

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        """Close this when the event loop shuts down its generators, as `asyncio.run` does before it closes the loop.

        Thus an application that has no moment to close its store, like a test with an event loop of its own, leaves no
        connection behind.
        """
        try:
            yield
        finally:
            if self._loop_end is not None:
                self._loop_end = None
                await self.close()
                await asyncio.sleep(0)  # for the transports to be told

    async def close(self) -> None:
        """Close the connections. Requests that wait get an error."""
        loop_end, self._loop_end = self._loop_end, None
        if loop_end is not None:
            await loop_end.aclose()
        error = StoreUnavailable("the store was closed", Kind.DISCONNECTED)
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        self._drop_control()
        if self._connection is not None:
            self._connection.abort(error)
            self._connection = None
        self._batcher.dismiss(error)
        self._batcher.close()

    def _depart(self) -> None:
        """Send the next batch, or begin to connect if there is no connection."""
        connection = self._connection
        if connection is None or not connection.usable:
            self._connection = None
            self._connect()
            return
        while connection.error is None and (batch := self._batcher.take()):
            self._send(connection, batch)

    def _send(self, connection: Connection, batch: Batch, attempt: int = 1) -> None:
        # The server forgot the script: the first batch to hear of it brings the text, those behind it find it there.
        text = attempt > 1 and self._told is not connection
        if text:
            self._told = connection
        nonce = b"%x" % next(self._nonces)
        requests = [waiting.hits for waiting in batch]
        try:
            now_ms = None if self._clock is None else self._clock()
            payload = script.packed(*script.arguments(requests, nonce, now_ms), text=text)
        except (AttributeError, TypeError, ValueError) as error:
            self._batcher.settle(batch, StoreFault(f"these hits cannot be sent: {error}", Kind.REFUSED))
            return
        if batch[0].group < 0:
            connection.send(ASKING, _ignore)
        call = _Call(connection, batch, requests, nonce, attempt, text)
        connection.send(payload, partial(self._answered, call))

    def _answered(self, call: _Call, reply: object) -> None:
        if call.text:
            self._told = None
        if isinstance(reply, StoreError):
            self._refused(call, reply)
            return
        try:
            answers = script.receipts(call.requests, call.nonce, reply)
        except StoreFault as fault:
            # This reply may belong to any call, so no request may get another one from this connection.
            self._drop(call.connection, fault)
            self._batcher.settle(call.batch, fault)
            return
        self._failures = 0
        self._batcher.settle(call.batch, answers)

    def _refused(self, call: _Call, error: StoreError) -> None:
        connection, batch = call.connection, call.batch
        if isinstance(error, ScriptMissing) and connection.error is None:
            if call.attempt < ATTEMPTS_MAX and not all(waiting.future.done() for waiting in batch):
                self._send(connection, batch, call.attempt + 1)  # nothing has been run: this charges nothing twice
                return
        elif connection.error is not None or error.kind in MOVED_AWAY:
            self._drop(connection, error)
        self._batcher.settle(batch, error)

    def _overdue(self) -> None:
        """Drop the connection: a server that is overdue may never answer, and its late replies are not read."""
        if self._connection is not None:
            self._drop(self._connection, StoreTimeout(f"no answer within {self._timeout_ms} ms"))

    def _drop(self, connection: Connection, error: StoreError) -> None:
        if connection is self._connection:  # once, though every batch that it carried brings the news
            self._connection = None
            self._failed(error)
        connection.abort(error)

    def _failed(self, error: StoreError) -> None:
        """Note that a connection broke, or could not be made."""
        self._error = error
        self._failures += 1
        if self._failures > 1:
            pause_s = min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(self._failures, 10))
            self._paused_until_s = self._loop.time() + pause_s * random.uniform(0.5, 1)  # noqa: S311 - spreads attempts

    def _connect(self) -> None:
        if self._attempt is not None or not len(self._batcher):
            return
        if self._loop.time() < self._paused_until_s:
            self._batcher.dismiss(self._error)
            return
        self._attempt = self._loop.create_task(self._try_to_connect())

    async def _try_to_connect(self) -> None:
        try:
            if self._loop_end is None:
                self._loop_end = self._close_with_loop()
                await anext(self._loop_end)
            self._address = await self._locate()
            self._connection = await open_connection(self._address, self._connect_timeout_ms)
        except StoreError as error:
            self._failed(error)
            self._batcher.dismiss(error)
        except Exception as error:  # whatever it is, the callers that wait must get it
            fault = StoreFault(f"connecting failed: {error!r}", Kind.PROTOCOL)
            self._failed(fault)
            self._batcher.dismiss(fault)
        finally:
            self._attempt = None
        self._batcher.call()
