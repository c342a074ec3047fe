"""PROXY protocol, versions 1 and 2: a balancer says in front of a connection whose connection it passes on.

The specification is haproxy.org's `proxy-protocol.txt`. Only a trusted peer's word is taken, and from it a connection
without such a header is refused (section 5). The header stands before TLS, so it is read off the socket itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from ratelimiter.proxy.proxy import Proxy

log = logging.getLogger(__name__)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"  # of version 2
V1_MAX = 107  # bytes of a header of version 1, its line end included
V2_MAX = 4096  # of version 2, of which TLVs may take most
LOCAL, PROXIED = 0x20, 0x21
SIZES = {0x11: 4, 0x21: 16}  # of an address of TCP over IPv4 and over IPv6
AGAIN_S = 0.01  # until the rest of a header is looked for
PENDING_MAX = 1024  # connections whose header has not come


class Header(NamedTuple):
    """The header in front of a connection."""

    size: int  # in bytes
    client: str | None  # address of the client; None if the connection is the balancer's own, or of no such family


def parse(data: bytes) -> Header | None:
    """Return the header that *data* begins with; None if more of it must come.

    Raises:
        ValueError: it begins with none.
    """
    if data.startswith(SIGNATURE):
        return _parse_v2(data)
    if data.startswith(b"PROXY "):
        return _parse_v1(data)
    if SIGNATURE.startswith(data[: len(SIGNATURE)]) or b"PROXY ".startswith(data[:6]):
        return None
    msg = "it begins with no header"
    raise ValueError(msg)


def _parse_v1(data: bytes) -> Header | None:
    line, end, _ = data[:V1_MAX].partition(b"\r\n")
    if not end:
        if len(data) >= V1_MAX:
            msg = "its line is too long"
            raise ValueError(msg)
        return None
    size, words = len(line) + 2, line.decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return Header(size, None)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        msg = "its line is malformed"
        raise ValueError(msg)
    address = ipaddress.ip_address(words[2])
    if address.version != int(words[1][-1]) or not all(word.isascii() and word.isdigit() for word in words[4:]):
        msg = "its line is malformed"
        raise ValueError(msg)
    return Header(size, str(address))


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < 16:
        return None
    command, family, size = data[12], data[13], 16 + int.from_bytes(data[14:16], "big")
    if command not in (LOCAL, PROXIED) or size > V2_MAX:
        msg = "its command is unknown, or it is too long"
        raise ValueError(msg)
    if len(data) < size:
        return None
    bytes_of_address = SIZES.get(family, 0)
    if command == LOCAL or not bytes_of_address:
        return Header(size, None)
    if size < 16 + 2 * bytes_of_address + 4:
        msg = "it is too short for its addresses"
        raise ValueError(msg)
    return Header(size, str(ipaddress.ip_address(data[16 : 16 + bytes_of_address])))


class ProxyProtocolServer:
    """Accepts connections on a socket, and reads such a header off those of trusted peers.

    Args:
        proxy: serves them.
        sock: listens.
        connected: makes the protocol of a connection, given the client's address if a header says it.
        tls: of the connections; None for plain HTTP.
    """

    def __init__(
        self,
        proxy: Proxy,
        sock: socket.socket,
        connected: Callable[[str | None], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._proxy = proxy
        self._sock = sock
        self._connected = connected
        self._tls = tls
        self._pending: set[asyncio.Task[None]] = set()
        self._accepting = proxy.loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more; connections whose header has not come are closed."""
        self._accepting.cancel()
        for task in list(self._pending):
            task.cancel()
        self._sock.close()

    async def _accept(self) -> None:
        loop = self._proxy.loop
        while True:
            try:
                made, address = await loop.sock_accept(self._sock)
            except OSError as fault:  # without a descriptor: the kernel keeps the connection until there is one
                log.warning("no connection can be accepted: %s", fault.strerror)
                await asyncio.sleep(0.1)
                continue
            if len(self._pending) >= PENDING_MAX:
                made.close()
                continue
            peer = address[0] if isinstance(address, tuple) else None
            task = loop.create_task(self._introduce(made, peer))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _introduce(self, made: socket.socket, peer: str | None) -> None:
        """Serve a connection once it is known whose it is."""
        loop, proxy = self._proxy.loop, self._proxy
        made.setblocking(False)
        client = None
        try:
            if proxy.trusts(peer):
                async with asyncio.timeout(proxy.settings.head_timeout_ms / 1000):
                    client = await _read(made, loop)
        except (OSError, ValueError, TimeoutError) as fault:
            log.warning("a connection of a trusted proxy is closed, as it has no PROXY protocol header: %s", fault)
            made.close()
            return
        except asyncio.CancelledError:
            made.close()
            raise
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(lambda: self._connected(client), made, ssl=self._tls)


async def _read(made: socket.socket, loop: asyncio.AbstractEventLoop) -> str | None:
    """Take the header off the socket, and not a byte more; return the client's address."""
    while True:
        ready = asyncio.Event()
        loop.add_reader(made.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(made.fileno())
        data = made.recv(V2_MAX, socket.MSG_PEEK)
        if not data:
            msg = "it was closed"
            raise ValueError(msg)
        header = parse(data)
        if header is not None:
            made.recv(header.size)
            return header.client
        await asyncio.sleep(AGAIN_S)  # what was looked at is still there, so the socket stays ready
