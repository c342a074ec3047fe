"""A TCP connection to whichever address of a host answers first (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from ratelimiter.clock import stopwatch_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Resolve = Callable[..., Awaitable[Sequence[tuple[Any, ...]]]]
    Address = tuple[int, Any]  # a family, and what a socket of it connects to

SLOW_FOR_S = 60.0  # that an address comes last after it has failed, or another was quicker
ATTEMPT_DELAY_S = 0.25  # before the next address is tried, too (section 5)


class Dialer:
    """Connects to one host and port.

    Args:
        host: a name or an address.
        port: 1 to 65535.
        loop: the event loop.
        resolve: looks names up; the event loop's `getaddrinfo` by default.
    """

    def __init__(
        self, host: str, port: int, loop: asyncio.AbstractEventLoop, *, resolve: Resolve | None = None
    ) -> None:
        self._resolve = resolve or loop.getaddrinfo
        self._host = host
        self._port = port
        self._loop = loop
        self._slow: dict[Address, float] = {}  # when an address failed, or another was quicker
        self._turn = 0  # of the addresses that share the load
        self.spread = 1  # how many these are

    async def dial(self) -> socket.socket:
        """Return a connected socket. Addresses of one family take turns; one that failed or was slow comes last for a
        while.

        Raises:
            OSError: the name has no address, or none of them can be reached; what the first one said.
        """
        loop = self._loop
        waiting = self._in_order(await self._resolve(self._host, self._port, type=socket.SOCK_STREAM))
        attempts: dict[asyncio.Task[socket.socket], Address] = {}
        faults: list[BaseException] = []
        try:
            while waiting or attempts:
                if waiting:
                    address = waiting.pop(0)
                    attempts[loop.create_task(self._attempt(address))] = address
                timeout_s = ATTEMPT_DELAY_S if waiting else None
                done, _ = await asyncio.wait(attempts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    fault = attempt.exception()
                    if fault is None:
                        self._slow.pop(attempts.pop(attempt), None)
                        self._slow |= dict.fromkeys(attempts.values(), stopwatch_s())
                        return attempt.result()
                    self._slow[attempts.pop(attempt)] = stopwatch_s()
                    faults.append(fault)
        finally:
            for attempt in attempts:
                attempt.add_done_callback(_close)
                attempt.cancel()
        raise faults[0]

    def _in_order(self, found: Sequence[tuple[Any, ...]]) -> list[Address]:
        addresses = list(dict.fromkeys((info[0], info[4]) for info in found))
        oldest_s = stopwatch_s() - SLOW_FOR_S
        self._slow = {address: at_s for address, at_s in self._slow.items() if at_s > oldest_s}
        quick = [address for address in addresses if address not in self._slow]
        sharing = [address for address in quick if address[0] == quick[0][0]]
        self.spread = max(1, len(sharing))
        at = self._turn % self.spread
        self._turn += 1
        # Section 4: the families take turns.
        others = [address for address in quick if address not in sharing]
        turns = chain(*zip_longest([*sharing[at:], *sharing[:at]], others))
        slow = [address for address in addresses if address in self._slow]
        return [*(address for address in turns if address is not None), *slow]

    async def _attempt(self, address: Address) -> socket.socket:
        made = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            await self._loop.sock_connect(made, address[1])
        except BaseException:
            made.close()
            raise
        return made


def _close(attempt: asyncio.Task[socket.socket]) -> None:
    """Let go of a connection that came too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
