"""Listeners, and the life of a process that serves them: ready, then draining, then gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import stat
import threading
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from ratelimiter.errors import ConfigError
from ratelimiter.proxy.addresses import UNIX
from ratelimiter.proxy.client_connection import ClientConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ratelimiter.proxy.addresses import Listen
    from ratelimiter.proxy.proxy import Service
    from ratelimiter.proxy.settings import Bounds

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BACKLOG = 1024
# Bytes that the kernel takes in of what a client does not; each connection has this from its listener. Else they are
# megabytes: a client whose window is a few bytes has them cut as small, at a millisecond and more of a worker's time.
UNSENT_MAX = 131_072
NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
STOPPING = (signal.SIGTERM, signal.SIGINT)


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run *main* on the event loop that the proxy is made for."""
    return uvloop.run(main)


def bind(listen: Listen, flag: str = "--listen", *, shared: bool = False) -> socket.socket:
    """A socket that listens there; of a host name's addresses at the first.

    Args:
        listen: where.
        flag: by which it was given.
        shared: whether other processes bind the same port, each to get a share of the connections.

    Raises:
        ConfigError: it cannot be bound.
    """
    if listen.path:
        return _bound(listen, flag, lambda: _bind_unix(listen.path))
    return _bound(listen, flag, lambda: _bind_tcp(*_addresses(listen)[0], shared=shared))


def bind_all(listen: Listen, count: int, flag: str = "--listen") -> list[list[socket.socket]]:
    """For each of *count* processes sockets that listen there, one for every address of a host name; what comes is
    shared among the processes. Of a unix socket, each has the same.

    Raises:
        ConfigError: they cannot be bound.
    """
    if listen.path:
        first = bind(listen, flag)
        return [[first], *([first.dup()] for _ in range(count - 1))]
    made: list[list[socket.socket]] = [[] for _ in range(count)]

    def bind_each() -> None:
        absent: OSError | None = None
        port = listen.port
        for family, address in _addresses(listen):
            for sockets in made:
                try:
                    sockets.append(_bind_tcp(family, (address[0], port, *address[2:]), shared=count > 1))
                except OSError as fault:
                    # A name may have addresses that this machine has not: `localhost`, where there is no IPv6.
                    if fault.errno not in NOT_HERE:
                        raise
                    absent = fault
                    break
                port = sockets[-1].getsockname()[1]
        if not made[0]:
            raise absent or OSError(errno.EADDRNOTAVAIL, "no address")

    try:
        _bound(listen, flag, bind_each)
    except ConfigError:
        for sock in chain(*made):
            sock.close()
        raise
    return made


def _bound(listen: Listen, flag: str, bind_there: Callable[[], Result]) -> Result:
    """What *bind_there* makes, its faults in our words."""
    try:
        return bind_there()
    except OSError as fault:
        where = listen.path or f"{listen.host}:{listen.port}"
        msg = f"{flag}: {where!r} cannot be bound ({fault.strerror or fault})"
        raise ConfigError(msg) from None


def name_of(bound: socket.socket) -> str:
    """Where a socket listens, as people write it."""
    name = bound.getsockname()
    if isinstance(name, str):
        return f"{UNIX}{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _addresses(listen: Listen) -> list[tuple[int, tuple[Any, ...]]]:
    """Families and addresses of the host; without one, of every interface."""
    flags = socket.AI_PASSIVE | socket.AI_ADDRCONFIG if not listen.host else 0
    found = socket.getaddrinfo(listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind_tcp(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_MAX)
        bound.bind(address)
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)  # left behind by a process that was killed
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def tls_context(cert: str, key: str | None) -> ssl.SSLContext:
    """What a TLS listener needs.

    Args:
        cert: path of the certificate, those that vouch for it behind it.
        key: path of its key; None if it is in the same file.

    Raises:
        ConfigError: they cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as fault:
        msg = f"--tls-cert: {cert!r} cannot be used ({fault.strerror or fault})"
        raise ConfigError(msg) from None
    return context


class Server:
    """Serves clients on some sockets.

    Args:
        service: what they are served.
        sockets: that listen.
        tls: of all of them; None for plain HTTP.

    Attributes:
        ready: whether others should send requests here.
    """

    def __init__(self, service: Service, sockets: list[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        self.service = service
        self._sockets = sockets
        self._tls = tls
        self._listeners: list[asyncio.AbstractServer] = []
        self.ready = False

    async def start(self) -> None:
        """Begin to serve."""
        loop = self.service.loop
        scheme = b"http" if self._tls is None else b"https"

        def connected() -> ClientConnection:
            return ClientConnection(self.service, scheme)

        for sock in self._sockets:
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._listeners.append(await create(connected, sock=sock, ssl=self._tls, backlog=BACKLOG))
        self.ready = True

    async def drain(self, at_once: asyncio.Event | None = None) -> None:
        """Stop without failing anybody: first say so and go on, as whoever sends requests here learns it only later;
        then take in nobody new, and finish what is under way.

        Args:
            at_once: cuts all of that short when it is set.
        """
        bounds = self.service.bounds
        at_once = at_once or asyncio.Event()
        self.ready = False
        self.service.draining = True
        await _passes(at_once, bounds.lame_duck_ms / 1000)
        for listener in self._listeners:
            listener.close()
        self.service.retire()
        end_s = self.service.loop.time() + bounds.grace_ms / 1000
        while len(self.service) and not at_once.is_set() and self.service.loop.time() < end_s:
            await _passes(at_once, 0.02)
        if len(self.service):
            log.warning("%d connections are cut off", len(self.service))
        self.service.abort()


async def _passes(event: asyncio.Event, seconds: float) -> None:
    """Wait for *event*, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


async def until_stopped(server: Server, on_hangup: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends that at once.

    Args:
        server: serves already.
        on_hangup: what SIGHUP is for; nothing by default.
    """
    loop = asyncio.get_running_loop()
    stopping, at_once = asyncio.Event(), asyncio.Event()
    within_s = stop_within_s(server.service.bounds)

    def stop() -> None:
        if stopping.is_set():
            at_once.set()
        else:
            _exit_after(within_s)
        stopping.set()

    handlers = dict.fromkeys(STOPPING, stop) | {signal.SIGHUP: on_hangup or _nothing}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    # A supervisor starts its workers with these held back, as they would be fatal until now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
    try:
        await stopping.wait()
        await server.drain(at_once)
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def stop_within_s(bounds: Bounds) -> float:
    """Return the time from the first signal in which a process ends, in seconds: lame duck, grace and one more."""
    return (bounds.lame_duck_ms + bounds.grace_ms) / 1000 + 1


def _exit_after(seconds: float) -> None:
    """End the process *seconds* from now, whatever it still waits for: a log, a store, a listener."""

    def end() -> None:
        log.error("something has not ended within %g s of the signal to stop; the process ends without it", seconds)
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _nothing() -> None:
    pass
