"""The control plane over redis-py: overrides, audit lines, the slot map, questions to Sentinels. One command at a time.

None of redis-py's defaults is used: they retry up to ten times and wait up to 59 s on a stopped server. Here nothing is
retried, every wait is bounded, and the protocol is RESP2. redis-py is imported when the first connection is opened, so
`import ratelimiter` does not pull it in. Names are resolved by `ratelimiter.stores.redis.connection.resolved`, since a
hanging resolver must not hold more than one thread. The TLS context is that of the hot connection.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any

from ratelimiter.errors import Kind, StoreError, StoreFault, StoreMisconfigured, StoreTimeout, StoreUnavailable
from ratelimiter.stores.redis.connection import error_of, is_courtesy, resolved

if TYPE_CHECKING:
    from ratelimiter.stores.redis.url import Address


class ControlConnection:
    """A connection to one server, opened by the first call and again after an error.

    Not thread-safe; belongs to the event loop of its first call.

    Args:
        address: the server and the credentials.
        timeout_ms: for one reply.
        connect_timeout_ms: for name, connection, TLS and password.
        brief: True if it serves one call only, so that it needs no name.
    """

    def __init__(self, address: Address, *, timeout_ms: int, connect_timeout_ms: int, brief: bool = False) -> None:
        self.address = address
        self._timeout_s = timeout_ms / 1000
        self._connect_timeout_s = connect_timeout_ms / 1000
        self._brief = brief
        self._connection: Any = None
        self._turn = asyncio.Lock()  # a reply belongs to the command before it

    async def call(self, *words: str | bytes, asking: bool = False) -> object:
        """Send one command and return its reply. Never sent twice.

        Args:
            words: of the command.
            asking: for a slot that this server is about to take over.

        Raises:
            StoreError: no connection, no reply in time, or an error reply. After a timeout the server may have
                carried the command out.
        """
        async with self._turn:
            library = _library()
            try:
                connection = await self._connected()
                if asking:
                    await connection.send_command("ASKING")
                    await connection.read_response()
                await connection.send_command(*words)
                return await connection.read_response()
            except library.exceptions.ResponseError as error:  # the connection is as good as before
                raise _reply_error(error) from error
            except (library.exceptions.RedisError, OSError) as error:
                self.drop()
                raise _failure(error, self.address) from error
            except BaseException:  # cancelled: a reply may still come
                self.drop()
                raise

    def drop(self) -> None:
        """Close the connection at once, if there is one. A reply under way is not read."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _abort(connection)

    async def _connected(self) -> Any:
        connection = self._connection
        if connection is None or not connection.is_connected:
            connection = self._connection = _library().Control(
                self.address, timeout_s=self._timeout_s, connect_timeout_s=self._connect_timeout_s
            )
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await connection.connect()
                    if not self._brief:
                        await self._name(connection)
            except TimeoutError as error:
                self.drop()
                msg = f"no connection to {self.address} within {self._connect_timeout_s * 1000:.0f} ms"
                raise StoreUnavailable(msg, Kind.UNREACHABLE) from error
        return connection

    async def _name(self, connection: Any) -> None:
        """Set the name that CLIENT LIST shows, if the ACL user may."""
        await connection.send_command("CLIENT", "SETNAME", self.address.client_name)
        try:
            await connection.read_response()
        except _library().exceptions.ResponseError as refusal:
            error = _reply_error(refusal)
            if not is_courtesy(error):
                raise error from refusal


async def ask(address: Address, *words: str, timeout_ms: int) -> object:
    """Send one command over a connection of its own and return the reply.

    Raises:
        StoreError: as `ControlConnection.call`.
    """
    connection = ControlConnection(address, timeout_ms=timeout_ms, connect_timeout_ms=timeout_ms, brief=True)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await connection.call(*words)
    except TimeoutError as error:
        msg = f"{address} does not answer within {timeout_ms} ms"
        raise StoreUnavailable(msg, Kind.UNREACHABLE) from error
    finally:
        connection.drop()


def _abort(connection: Any) -> None:
    writer = connection._writer
    connection._writer = connection._reader = None
    if writer is not None:
        writer.transport.abort()


def _reply_error(error: Any) -> StoreError:
    """Return an error reply as the hot connection would have read it: redis-py cuts off the code of those it knows."""
    code = getattr(error, "status_code", None)
    return error_of(f"{code} {error}" if code else str(error))


def _failure(error: Any, address: Address) -> StoreError:
    exceptions = _library().exceptions
    text = str(error)
    if isinstance(error.__cause__, StoreError):  # of `Address.credentials`
        return error.__cause__
    if getattr(error, "status_code", None) or isinstance(error, exceptions.AuthenticationError):
        return _reply_error(error)
    if isinstance(error, exceptions.InvalidResponse):
        return StoreFault(f"{address} does not speak like a Redis server: {text}", Kind.PROTOCOL)
    if isinstance(error, exceptions.TimeoutError):
        return StoreTimeout(f"no answer from {address} in time")
    if "certificate" in text.lower() or "ssl" in text.lower():
        return StoreMisconfigured(f"TLS with {address}: {text}", Kind.TLS)
    kind = Kind.FULL if "max number of clients" in text else Kind.UNREACHABLE
    return StoreUnavailable(f"no connection to {address}: {text}", kind)


@cache
def _library() -> Any:
    """Import redis-py and return what of it is used."""
    from redis import exceptions  # noqa: PLC0415 - `import ratelimiter` must not pull it in
    from redis.asyncio.connection import AbstractConnection  # noqa: PLC0415
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.credentials import CredentialProvider  # noqa: PLC0415

    class Credentials(CredentialProvider):
        """The credentials of an address, as redis-py asks for them: at every connect."""

        def __init__(self, address: Address) -> None:
            self._address = address

        async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
            username, password = await self._address.credentials()
            return (username, password) if username else (password,)

    class Control(AbstractConnection):
        """redis-py's connection, with names resolved and TLS spoken as on the hot connection."""

        def __init__(self, address: Address, *, timeout_s: float, connect_timeout_s: float) -> None:
            self._address = address
            super().__init__(
                db=address.db,
                socket_timeout=timeout_s,
                socket_connect_timeout=connect_timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                driver_info=None,
                credential_provider=Credentials(address) if address.authenticates else None,
            )

        def repr_pieces(self) -> list[tuple[str, object]]:
            return [("address", str(self._address))]

        def _host_error(self) -> str:
            return str(self._address)

        async def _connect(self) -> None:
            address = self._address
            if address.path:
                self._reader, self._writer = await asyncio.open_unix_connection(address.path)
                return
            failure: OSError = OSError("the name has no address")
            name = address.host if address.tls else None
            for host in await resolved(address.host, address.port):
                try:
                    self._reader, self._writer = await asyncio.open_connection(
                        host, address.port, ssl=address.tls, server_hostname=name
                    )
                except OSError as error:
                    failure = error
                else:
                    return
            raise failure

    class Library:
        """The parts of redis-py that this module uses."""

    library: Any = Library()
    library.exceptions, library.Control, library.CredentialProvider = exceptions, Control, CredentialProvider
    return library


def preload() -> None:
    """Import redis-py now. It takes a tenth of a second, which a decision should not wait for."""
    _library()


def is_provider(value: object) -> bool:
    """Return True if *value* is a credential provider of redis-py."""
    return isinstance(value, _library().CredentialProvider)


async def credentials_of(provider: Any) -> tuple[str, str]:
    """Return user name and password as *provider* has them now; the user name is empty for the default user.

    Raises:
        StoreMisconfigured: the provider failed.
    """
    base = _library().CredentialProvider
    try:
        # redis-py's default would call the synchronous method on the event loop.
        if type(provider).get_credentials_async is base.get_credentials_async:
            words = await asyncio.to_thread(provider.get_credentials)
        else:
            words = await provider.get_credentials_async()
        *username, password = (str(word) for word in words)
    except Exception as error:
        msg = f"credential_provider: {type(error).__name__}: {error}"
        raise StoreMisconfigured(msg, Kind.AUTHENTICATION) from error
    return (username[0] if username else ""), password
