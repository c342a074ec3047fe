"""The life of a process that serves clients: ready, then draining, then gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from ratelimiter.proxy.client_connection import ClientConnection
from ratelimiter.proxy.listener import BACKLOG
from ratelimiter.proxy.proxy_protocol import ProxyProtocolServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from ratelimiter.proxy.proxy import Proxy
    from ratelimiter.proxy.settings import ProxySettings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

STOPPING = (signal.SIGTERM, signal.SIGINT)


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run *main* on the event loop that the proxy is made for."""
    return uvloop.run(main)


class Server:
    """Serves clients on some sockets.

    Args:
        proxy: what they are served.
        sockets: that listen.
        tls: of all of them; None for plain HTTP.

    Attributes:
        ready: True if load balancers should send requests here.
    """

    def __init__(self, proxy: Proxy, sockets: list[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        self.proxy = proxy
        self._sockets = sockets
        self._tls = tls
        self._listeners: list[asyncio.AbstractServer | ProxyProtocolServer] = []
        self.ready = False

    async def start(self) -> None:
        """Begin to serve."""
        loop = self.proxy.loop
        scheme = b"http" if self._tls is None else b"https"

        def connected(client: str | None = None) -> ClientConnection:
            return ClientConnection(self.proxy, scheme, client)

        for sock in self._sockets:
            if self.proxy.settings.proxy_protocol:
                self._listeners.append(ProxyProtocolServer(self.proxy, sock, connected, self._tls))
                continue
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._listeners.append(await create(connected, sock=sock, ssl=self._tls, backlog=BACKLOG))
        self.ready = True

    async def drain(self, at_once: asyncio.Event | None = None, *, lame_duck: bool = True) -> None:
        """Stop without failing a request.

        First report not ready and go on serving, because load balancers learn it only later. Then accept no new
        connection, and finish what is in flight.

        Args:
            at_once: cuts all of that short when it is set.
            lame_duck: False closes the listeners now: a person waits at the terminal, and no load balancer.
        """
        settings = self.proxy.settings
        at_once = at_once or asyncio.Event()
        self.ready = False
        self.proxy.draining = True
        if lame_duck:
            await _passes(at_once, settings.lame_duck_ms / 1000)
        for listener in self._listeners:
            listener.close()
        self.proxy.retire()
        end_s = self.proxy.loop.time() + settings.grace_ms / 1000
        while len(self.proxy) and not at_once.is_set() and self.proxy.loop.time() < end_s:
            await _passes(at_once, 0.02)
        if len(self.proxy):
            log.warning("%d connections are cut off", len(self.proxy))
        self.proxy.abort()


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
    within_s = stop_within_s(server.proxy.settings)

    interrupted = False
    settings = server.proxy.settings

    def stop(number: signal.Signals) -> None:
        nonlocal interrupted
        if stopping.is_set():
            at_once.set()
            return
        interrupted = number is signal.SIGINT
        accepting = "" if interrupted else f"requests are accepted for {settings.lame_duck_ms / 1000:g} s more, then "
        log.info("%s: draining: %srequests in flight have %g s", number.name, accepting, settings.grace_ms / 1000)
        _exit_after(within_s)
        stopping.set()

    handlers: dict[signal.Signals, Callable[[], None]] = {number: partial(stop, number) for number in STOPPING}
    handlers[signal.SIGHUP] = on_hangup or _nothing
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    # A supervisor starts its workers with these held back, as they would be fatal until now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
    try:
        await stopping.wait()
        await server.drain(at_once, lame_duck=not interrupted)
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def stop_within_s(settings: ProxySettings) -> float:
    """Return the time from the first signal in which a process ends, in seconds: lame duck, grace and one more."""
    return (settings.lame_duck_ms + settings.grace_ms) / 1000 + 1


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
