"""Listening sockets, and the TLS that is spoken on them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from ratelimiter.errors import ConfigError
from ratelimiter.proxy.addresses import UNIX
from ratelimiter.proxy.certificates import listener_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from ratelimiter.proxy.addresses import Listen

Result = TypeVar("Result")

BACKLOG = 1024
# Bytes that the kernel takes in of what a client does not; each connection has this from its listener. Else they are
# megabytes: a client whose window is a few bytes has them cut as small, at a millisecond and more of a worker's time.
UNSENT_MAX = 131_072
NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def bind(listen: Listen, flag: str = "--listen", *, shared: bool = False) -> socket.socket:
    """Return a socket that listens there; of a host name's addresses, at the first.

    Args:
        listen: where.
        flag: by which it was given.
        shared: True if other processes bind the same port, each to get a share of the connections.

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
    """Return the result of *bind_there*; raise its OSError as a ConfigError."""
    try:
        return bind_there()
    except OSError as fault:
        where = listen.path or f"{listen.host}:{listen.port}"
        msg = f"{flag}: {where!r} cannot be bound ({fault.strerror or fault})"
        raise ConfigError(msg) from None


def name_of(bound: socket.socket) -> str:
    """Return the address of a listening socket, as an operator writes it."""
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
    """Return the TLS of a listener without client certificates; see `certificates.listener_context`."""
    return listener_context(cert, key)
