"""The shared store: tallies in Redis, one script call for all requests that arrive at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Protocol

from ratelimiter.core.receipt import STORE
from ratelimiter.stores.base import SILENT, Store, StoreObserver
from ratelimiter.stores.overrides import RedisOverrideStore
from ratelimiter.stores.redis import control
from ratelimiter.stores.redis.script import Settling
from ratelimiter.stores.redis.sentinel import sentinels_of
from ratelimiter.stores.redis.server import Server
from ratelimiter.stores.redis.url import address_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

    from ratelimiter.clock import Clock
    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.stores.redis.url import Address

TIMEOUT_MS = 50


class Place(Protocol):
    """A server that may move."""

    async def locate(self) -> Address:
        """Return its present address, with the credentials.

        Raises:
            StoreError: the address cannot be found out.
        """


class RedisStore(Store):
    """Tallies in one Redis server (6.2 or later), or in the master of several, shared by all processes that use it.

    Every decision is made by the server's clock. Requests that arrive while a script call is under way share the next
    one. No connection is made before the first charge, and a broken one is replaced on the next.

    What the ACL user needs: `+evalsha +eval +get +set +time ~rl1:*`, and `+select` for a database other than 0. The
    connection also asks for `client|setname` and `role`, and does without. Runtime overrides need `+hget +hscan`;
    `stores.overrides.RedisOverrideStore` says what the process that writes them needs.

    Args:
        place: the address of the server, or the Sentinels that know it.
        timeout_ms: within this time `charge` returns or raises, at least 1.
        clock: Unix time in milliseconds, instead of the server's: for tests, and for servers whose scripts may not ask
            for the time. All processes that share the server must then agree on it.
        batching: settings of `ratelimiter.stores.redis.group_commit.GroupCommit`.
    """

    leases: ClassVar[bool] = True

    def __init__(
        self, place: Place, *, timeout_ms: int = TIMEOUT_MS, clock: Clock | None = None, **batching: int
    ) -> None:
        control.preload()
        self._place = place
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._batching = batching
        self._observer: StoreObserver = SILENT
        self._node: Server | None = None

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none; see `ratelimiter.stores.base.Store`.

        Raises:
            StoreUnavailable: no connection, or the server cannot serve. `StoreTimeout`: no answer in time. After a
                timeout or a broken connection the hits may or may not have been charged.
            StoreOverloaded: too many requests wait already; nothing was charged.
            StoreFault: a key holds a foreign value, or the answer made no sense.
            StoreMisconfigured: the server refuses the credentials, or a command that the store needs.
        """
        return await self._here().charge(hits)

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:  # noqa: ARG002 - its own
        """Replace charges by their final cost, with the next batch; see `ratelimiter.stores.base.Store`.

        Raises:
            StoreError: as `charge`.
        """
        await self._here().charge(Settling(settlements))

    def observe(self, observer: StoreObserver) -> None:
        """Report every round trip to *observer*; to be called before the first charge."""
        self._observer = observer

    def override_store(self, name: str) -> RedisOverrideStore:
        """Return the place of the runtime overrides of policy *name*."""
        return RedisOverrideStore(self, name)

    async def command(self, key: bytes, *words: str | bytes) -> object:  # noqa: ARG002  # one server serves all keys
        """Send one small command; see `ratelimiter.stores.overrides.Commanded`.

        Raises:
            StoreError: as `charge`, and for an error reply.
        """
        return await self._here().call(*words)

    async def control(self, key: bytes, *words: str | bytes) -> object:  # noqa: ARG002  # as above
        """Send one command that may take long; see `ratelimiter.stores.overrides.Commanded`.

        Raises:
            StoreError: as `command`.
        """
        return await self._here().control(*words)

    def _here(self) -> Server:
        """Return the server, for the running event loop."""
        node = self._node
        if node is None or node.loop is not asyncio.get_running_loop():
            node = self._node = Server(
                self._place.locate,
                timeout_ms=self._timeout_ms,
                clock=self._clock,
                observer=self._observer,
                **self._batching,
            )
        return node

    async def close(self) -> None:
        """Close the connection. A closed store may be used again and opens it anew."""
        node, self._node = self._node, None
        if node is not None and node.loop is asyncio.get_running_loop():
            await node.close()


def open_redis(parts: SplitResult, timeout_ms: int = TIMEOUT_MS) -> RedisStore:
    """Return the store of a `redis://`, `rediss://` or `unix://` URL; see `ratelimiter.stores.redis.url.address_of`.

    Raises:
        ValueError: the URL cannot be used.
    """
    return RedisStore(address_of(parts), timeout_ms=timeout_ms)


def open_sentinel(parts: SplitResult, timeout_ms: int = TIMEOUT_MS) -> RedisStore:
    """Return the store of a `redis+sentinel://` or `rediss+sentinel://` URL; see `stores.redis.sentinel.sentinels_of`.

    Raises:
        ValueError: the URL cannot be used.
    """
    return RedisStore(sentinels_of(parts), timeout_ms=timeout_ms)
