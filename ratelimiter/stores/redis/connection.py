"""One connection to one Redis server: bytes out, replies in, in the order of asking (RESP2)."""

from __future__ import annotations

import asyncio
import logging
import re
import select
import socket
import ssl
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import hiredis

from ratelimiter.errors import Kind, StoreError, StoreFault, StoreMisconfigured, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.stores.redis.url import Address

    Answered = Callable[[object], None]  # is given the reply, or the StoreError that came instead

# A peer that vanished without a word is noticed while nothing is asked, too.
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3


log = logging.getLogger("ratelimiter.stores")


class ScriptMissing(StoreFault):
    """The server does not know the script by its digest (NOSCRIPT): it has run nothing."""


# How an error reply begins, and what that means for us (reliability classes: see `ratelimiter.errors`).
CODES: dict[str, tuple[type[StoreError], Kind]] = {
    "NOSCRIPT": (ScriptMissing, Kind.REFUSED),
    "LOADING": (StoreUnavailable, Kind.LOADING),
    "BUSY": (StoreUnavailable, Kind.BUSY),
    "OOM": (StoreUnavailable, Kind.OUT_OF_MEMORY),
    "READONLY": (StoreUnavailable, Kind.READ_ONLY),
    "MASTERDOWN": (StoreUnavailable, Kind.NO_MASTER),
    "NOREPLICAS": (StoreUnavailable, Kind.NO_REPLICAS),
    "MISCONF": (StoreUnavailable, Kind.NOT_PERSISTED),
    "CLUSTERDOWN": (StoreUnavailable, Kind.CLUSTER_DOWN),
    "TRYAGAIN": (StoreUnavailable, Kind.CLUSTER_DOWN),
    "WRONGTYPE": (StoreFault, Kind.FOREIGN_VALUE),
    "NOAUTH": (StoreMisconfigured, Kind.AUTHENTICATION),
    "WRONGPASS": (StoreMisconfigured, Kind.AUTHENTICATION),
    "NOPERM": (StoreMisconfigured, Kind.PERMISSION),
    "DENIED": (StoreMisconfigured, Kind.PERMISSION),  # protected mode
    "MOVED": (StoreMisconfigured, Kind.MOVED),
    "ASK": (StoreMisconfigured, Kind.MOVED),
    # One call for many principals, which only a cluster's node minds; a store that knows of clusters makes none such.
    "CROSSSLOT": (StoreMisconfigured, Kind.MOVED),
}
# Those that have no code of their own.
TEXTS: tuple[tuple[str, type[StoreError], Kind], ...] = (
    ("max number of clients", StoreUnavailable, Kind.FULL),
    ("AUTH", StoreMisconfigured, Kind.AUTHENTICATION),
    ("user executing the script", StoreMisconfigured, Kind.PERMISSION),
    ("DB index", StoreMisconfigured, Kind.PERMISSION),
)
_NESTED = re.compile(r"@user_script: ?\d+: -?([A-Z]+) ")  # before Redis 7 a script's error hides the one that caused it
_MORE = object()  # what the reader says when a reply is not complete


def _bulk(word: str | bytes) -> bytes:
    encoded = word.encode() if isinstance(word, str) else word
    return b"$%d\r\n%b\r\n" % (len(encoded), encoded)


def error_of(text: str) -> StoreError:
    """Return the error that an error reply means."""
    nested = _NESTED.search(text)
    code = nested[1] if nested and nested[1] in CODES else text.split(" ", 1)[0]
    known = CODES.get(code) or next(((cls, kind) for part, cls, kind in TEXTS if part in text), None)
    cls, kind = known or (StoreFault, Kind.REFUSED)
    return cls(text, kind)


class Connection(asyncio.Protocol):
    """One connection. Calls may be pipelined: each reply goes to the oldest that waits.

    Any error ends the connection for good and is raised in every call that waits. The server may have carried these
    calls out.
    """

    def __init__(self) -> None:
        self.error: StoreError | None = None  # why it ended; None while it lives
        self._reader = hiredis.Reader(notEnoughData=_MORE, replyError=error_of)
        self._waiting: deque[Answered] = deque()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._poll = select.poll()

    @property
    def usable(self) -> bool:
        """True if something can be sent. A look at the socket notices what the event loop has not reported yet."""
        if self.error is None and not self._waiting and self._poll.poll(0):
            self._end(StoreUnavailable("the server closed the idle connection", Kind.DISCONNECTED))
        return self.error is None

    def send(self, payload: bytes, answered: Answered) -> None:
        """Send one packed call; *answered* receives the reply or the error. Check `usable` before."""
        self._waiting.append(answered)
        try:
            self._transport.write(payload)
        except RuntimeError as error:  # uvloop's, of a transport that it has closed and not yet told us of
            self._end(StoreUnavailable(f"the connection broke: {error}", Kind.DISCONNECTED))

    def call(self, *words: str | bytes) -> asyncio.Future[object]:
        """Send one command and return its reply. Error replies are raised."""
        future: asyncio.Future[object] = self._loop.create_future()

        def answered(reply: object) -> None:
            if future.done():
                return
            if isinstance(reply, StoreError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(b"*%d\r\n" % len(words) + b"".join(map(_bulk, words)), answered)
        return future

    def abort(self, error: StoreError) -> None:
        """Close the connection now. The server may carry out the calls that were sent."""
        self._end(error)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        self._poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
                ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
                ("TCP_KEEPCNT", KEEPALIVE_COUNT),
            ):
                if hasattr(socket, name):  # not everywhere
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        reader = self._reader
        reader.feed(data)
        while self.error is None:
            try:
                reply = reader.gets()
            except hiredis.ProtocolError as error:
                self._end(StoreFault(f"this does not speak like a Redis server: {error}", Kind.PROTOCOL))
                return
            if reply is _MORE:
                break
            if not self._waiting:
                # Said unasked: a farewell, or the replies are out of step.
                unasked = StoreFault("a reply that no call waits for", Kind.MISMATCH)
                self._end(reply if isinstance(reply, StoreError) else unasked)
                return
            self._waiting.popleft()(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if isinstance(exc, ssl.SSLError):
            self._end(StoreMisconfigured(f"TLS: {exc}", Kind.TLS))
        self._end(StoreUnavailable(f"the connection broke: {exc or 'closed by the server'}", Kind.DISCONNECTED))

    def _end(self, error: StoreError) -> None:
        if self.error is None:
            self.error = error
            with suppress(RuntimeError):  # as above
                self._transport.abort()
        while self._waiting:
            self._waiting.popleft()(self.error)


async def open_connection(address: Address, connect_timeout_ms: int, role: str = "master") -> Connection:
    """Return a connection to *address*, authenticated and ready for calls.

    Args:
        address: the server and the credentials.
        connect_timeout_ms: for everything: name, connection, TLS, password.
        role: what the server must be, in the words of the command ROLE; empty for anything.

    Raises:
        StoreUnavailable: no server answers, or it cannot serve, or it has another role.
        StoreFault: the peer is not a Redis server.
        StoreMisconfigured: the server does not let us in, or we do not trust it.
    """
    connection: Connection | None = None
    try:
        async with asyncio.timeout(connect_timeout_ms / 1000):
            connection = await _connected(address)
            await _enter(connection, address, role)
    except TimeoutError as error:
        msg = f"no connection to {address} within {connect_timeout_ms} ms"
        failure: StoreError = StoreUnavailable(msg, Kind.UNREACHABLE)
        _give_up(connection, failure)
        raise failure from error
    except BaseException as error:
        _give_up(connection, error if isinstance(error, StoreError) else StoreUnavailable("given up"))
        raise
    return connection


def _give_up(connection: Connection | None, error: StoreError) -> None:
    if connection is not None:
        connection.abort(error)


async def _connected(address: Address) -> Connection:
    loop = asyncio.get_running_loop()
    try:
        if address.path:
            _, connection = await loop.create_unix_connection(Connection, address.path)
            return connection
        failure: OSError | None = None
        for host in await resolved(address.host, address.port):
            try:
                _, connection = await loop.create_connection(
                    Connection,
                    host,
                    address.port,
                    ssl=address.tls,
                    server_hostname=address.host if address.tls else None,
                )
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = failure or error
            else:
                return connection
        raise failure or OSError("the name has no address")
    except ssl.SSLError as error:
        msg = f"TLS with {address}: {error}"
        raise StoreMisconfigured(msg, Kind.TLS) from error
    except OSError as error:
        msg = f"cannot connect to {address}: {error}"
        raise StoreUnavailable(msg, Kind.UNREACHABLE) from error


async def resolved(host: str, port: int) -> list[str]:
    """Return the addresses of *host*, in the order of preference.

    A resolver that hangs holds a thread of a pool that others need, too: it is not asked again before it has answered,
    however many attempts to connect have given up on it.
    """
    loop = asyncio.get_running_loop()
    asked = _resolving.setdefault(loop, {})
    answer = asked.get((host, port))
    if answer is None:
        answer = asked[host, port] = asyncio.ensure_future(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        answer.add_done_callback(partial(_forget, asked, (host, port)))
    return list(dict.fromkeys(str(info[4][0]) for info in await asyncio.shield(answer)))


_Resolving = dict[tuple[str, int], "asyncio.Future[list[Any]]"]
_resolving: WeakKeyDictionary[asyncio.AbstractEventLoop, _Resolving] = WeakKeyDictionary()


def _forget(asked: _Resolving, name: tuple[str, int], answer: asyncio.Future[list[Any]]) -> None:
    del asked[name]
    if not answer.cancelled():
        answer.exception()  # mark it as retrieved: the callers that wait have it, if any is left


async def _enter(connection: Connection, address: Address, role: str) -> None:
    """Authenticate, select the database and check the role of the server, in one round trip."""
    required = []
    if address.authenticates:
        username, password = await address.credentials()
        required.append(connection.call("AUTH", *([username] if username else []), password))
    if address.db:
        required.append(connection.call("SELECT", str(address.db)))
    courtesies = [
        connection.call("CLIENT", "SETNAME", address.client_name),
        connection.call("CONFIG", "GET", "maxmemory-policy"),
        connection.call("ROLE"),
    ]
    answers = await asyncio.gather(*required, *courtesies, return_exceptions=True)
    for number, answer in enumerate(answers):
        # A name is a courtesy, and so are the others: a user that may not ask for the role is told by the first write.
        if isinstance(answer, BaseException) and (number < len(required) or not is_courtesy(answer)):
            raise answer
    *_, setting, place = answers
    if isinstance(setting, list) and len(setting) == 2:
        _warn_of_eviction(str(address), setting[1].decode())
    actual = place[0].decode() if isinstance(place, list) else role
    if role and actual != role:
        msg = f"{address} is a {actual}, not a {role}"
        raise StoreUnavailable(msg, Kind.READ_ONLY)


def _warn_of_eviction(address: str, policy: str) -> None:
    """Log once per server that it may evict our keys: no error tells, and such a key is a limit that begins anew."""
    if policy.startswith("allkeys") and address not in _warned:
        _warned.add(address)
        log.warning(
            "%s may evict the limiter's keys (maxmemory-policy %s), and an evicted key is a limit that begins anew; "
            "set noeviction or volatile-ttl on a server of its own",
            address,
            policy,
        )


_warned: set[str] = set()


def is_courtesy(error: BaseException) -> bool:
    """Return True for the refusal of a command that the connection can do without."""
    return (isinstance(error, StoreMisconfigured) and error.kind is Kind.PERMISSION) or (
        isinstance(error, StoreFault) and error.kind is Kind.REFUSED
    )
