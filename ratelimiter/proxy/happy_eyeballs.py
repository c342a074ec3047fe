"""A TCP connection to whichever address of a host answers first (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Resolve = Callable[..., Awaitable[Sequence[tuple[Any, ...]]]]
    Address = tuple[int, Any]  # a family, and what a socket of it connects to

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
        self._last: Address | None = None  # that answered: it is tried first

    async def dial(self) -> socket.socket:
        """A socket that is connected: to the address that answered last, if it is quick enough, else to the first of
        the others that does.

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
                        self._last = attempts.pop(attempt)
                        return attempt.result()
                    del attempts[attempt]
                    faults.append(fault)
        finally:
            for attempt in attempts:
                attempt.add_done_callback(_close)
                attempt.cancel()
        raise faults[0]

    def _in_order(self, found: Sequence[tuple[Any, ...]]) -> list[Address]:
        # Section 4: as the resolver has sorted them, but the families take turns.
        addresses = list(dict.fromkeys((info[0], info[4]) for info in found))
        first = [address for address in addresses if address[0] == addresses[0][0]]
        second = [address for address in addresses if address[0] != addresses[0][0]]
        ordered = [address for address in chain(*zip_longest(first, second)) if address is not None]
        if self._last in ordered:
            ordered.remove(self._last)
            ordered.insert(0, self._last)
        return ordered

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
