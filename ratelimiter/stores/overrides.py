"""Stores of runtime overrides: in Redis for all processes that share it, or in this process."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from ratelimiter.errors import Kind, StoreFault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ratelimiter.clock import Clock
    from ratelimiter.stores.memory import MemoryStore

TEXT = files("ratelimiter.stores.redis").joinpath("lua/overrides.lua").read_text(encoding="utf-8")
ORDERS_MAX = 100_000  # about 200 bytes each, which every process reads, in slices, whenever one changes
SLICE = 500  # overrides of one reply
READS_MAX = 3  # attempts at a reading during which nothing is written
META = frozenset({"version", "sweep", "latest", "endless"})  # fields that are no override
TOLD_MAX = 1000
KEPT_MS = 10 * 366 * 24 * 3600 * 1000  # what has no end by itself is kept so long after the last write


class Snapshot(NamedTuple):
    """All runtime overrides at one moment."""

    version: str  # another one after each write; empty before the first
    now_ms: int  # the store's clock, Unix time
    fields: dict[str, tuple[int, str]]  # when it ends, Unix ms (0 never), and the order as JSON


class OverridesFullError(Exception):
    """There are `ORDERS_MAX` overrides already."""


class OverrideStore(ABC):
    """Keeps runtime overrides and their audit lines."""

    shared: ClassVar[bool]  # True if other processes write to it

    @abstractmethod
    async def version(self) -> str:
        """Return the version of the overrides; cheap."""

    @abstractmethod
    async def read(self) -> Snapshot:
        """Return all overrides that have not ended."""

    @abstractmethod
    async def now_ms(self) -> int:
        """Return the store's clock, Unix time."""

    def page(self) -> Snapshot | None:
        """Return the overrides without waiting; None where they are kept outside this process."""
        return None

    def listen(self, listener: Callable[[], None]) -> None:  # noqa: B027  # a default
        """Call *listener* after each write of this process, where `page` can say what was written."""

    @abstractmethod
    async def write(self, told: str, field: str = "", value: tuple[int, str] | None = None) -> str:
        """Write or remove one override and add its audit line, together or not at all.

        Args:
            told: the audit line, a JSON object that is not closed: `old`, the old value, and `at_ms` are added.
            field: of the override; empty to write nothing but a version and the audit line.
            value: when it ends and its JSON; None to remove it.

        Returns:
            The old JSON; empty if there was none.

        Raises:
            OverridesFullError: there are too many overrides.
        """

    @abstractmethod
    async def told(self, number: int) -> list[str]:
        """Return the last *number* audit lines, the latest first, each a JSON object."""

    @abstractmethod
    async def erase(self, keys: Sequence[bytes]) -> None:
        """Delete the tallies of *keys*."""


class Commanded(Protocol):
    """A store that takes commands, as stores of Redis do."""

    async def command(self, key: bytes, *words: str | bytes) -> object:
        """Send one command with a short reply to the server of *key*, and return the reply.

        Raises:
            StoreError: there was none, or an error.
        """

    async def control(self, key: bytes, *words: str | bytes) -> object:
        """Send one command that may take long to the server of *key*, and return the reply.

        Raises:
            StoreError: there was none, or an error.
        """


class RedisOverrideStore(OverrideStore):
    """Runtime overrides in Redis, in any topology: two keys of one slot for each policy.

    What the ACL user needs beside what the store says: `+hget +hscan +hlen +hexists +hset +hdel +pexpire +lpush +ltrim
    +lrange +del`; of those only `+hget +hscan` for a process that only reads.

    Args:
        store: that takes commands.
        name: of the policy.
        clock: Unix time in milliseconds, instead of the server's.

    Each method raises a StoreError when there is no answer.
    """

    shared = True

    def __init__(self, store: Commanded, name: str, *, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock
        self._orders = f"rl1:{{orders}}:{name}".encode()
        self._told = self._orders + b":audit"

    async def version(self) -> str:
        """See `OverrideStore`."""
        version = await self._store.command(self._orders, "HGET", self._orders, "version")
        return version.decode() if isinstance(version, bytes) else ""

    async def read(self) -> Snapshot:
        """See `OverrideStore`."""
        version = await self.version()
        fields: dict[str, tuple[int, str]] = {}
        for _ in range(READS_MAX if version else 0):  # before the first write there is nothing to read
            fields = await self._scanned()
            before, version = version, await self.version()
            if before == version:
                break
        else:
            version = version and "changing"  # so that the next look reads again
        now_ms = await self.now_ms()
        return Snapshot(version, now_ms, _in_force(fields, now_ms))

    async def _scanned(self) -> dict[str, tuple[int, str]]:
        """Return all fields, read in slices, so that neither the server nor this event loop stands still for many.

        One that is written meanwhile may be missing: the version tells.
        """
        fields: dict[str, tuple[int, str]] = {}
        cursor = "0"
        while True:
            words = ("HSCAN", self._orders, cursor, "COUNT", str(SLICE))
            match await self._store.control(self._orders, *words):
                case [bytes(after), list(pairs)]:
                    fields |= _fields([text.decode("utf-8", "replace") for text in pairs])
                    cursor = after.decode()
                case _:
                    msg = "HSCAN is answered with something else"
                    raise StoreFault(msg, Kind.PROTOCOL)
            if cursor == "0":
                return fields

    async def write(self, told: str, field: str = "", value: tuple[int, str] | None = None) -> str:
        """See `OverrideStore`."""
        now = "" if self._clock is None else str(self._clock())
        spelled = "" if value is None else f"{value[0]} {value[1]}"
        words = (now, field, spelled, told, secrets.token_hex(8), str(ORDERS_MAX), str(TOLD_MAX), str(KEPT_MS))
        reply = await self._store.control(self._orders, "EVAL", TEXT, "2", self._orders, self._told, *words)
        match reply:
            case [1, bytes(before)]:
                return before.decode().partition(" ")[2]
            case [0, _]:
                raise OverridesFullError
            case _:
                msg = "the script that writes overrides is answered with something else"
                raise StoreFault(msg, Kind.PROTOCOL)

    async def told(self, number: int) -> list[str]:
        """See `OverrideStore`."""
        lines = await self._store.control(self._orders, "LRANGE", self._told, "0", str(number - 1))
        return [line.decode("utf-8", "replace") for line in lines] if isinstance(lines, list) else []

    async def erase(self, keys: Sequence[bytes]) -> None:
        """See `OverrideStore`."""
        for key in keys:  # each by itself: not all of them need be in one slot
            await self._store.control(key, "DEL", key)

    async def now_ms(self) -> int:
        """See `OverrideStore`."""
        if self._clock is not None:
            return self._clock()
        time = await self._store.command(self._orders, "TIME")
        match time:
            case [bytes(seconds), bytes(micros)]:
                return int(seconds) * 1000 + int(micros) // 1000
            case _:
                msg = "TIME is answered with something else"
                raise StoreFault(msg, Kind.PROTOCOL)


class MemoryOverrideStore(OverrideStore):
    """Runtime overrides in this process, beside the tallies of a `MemoryStore`.

    Args:
        store: gives the clock, and has the tallies that are erased.
    """

    shared = False

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._version = 0
        self._fields: dict[str, tuple[int, str]] = {}
        self._lines: list[str] = []
        self._listeners: list[Callable[[], None]] = []  # called after each write

    async def version(self) -> str:
        """See `OverrideStore`."""
        return str(self._version or "")

    async def now_ms(self) -> int:
        """See `OverrideStore`."""
        return self._store.now_ms()

    async def read(self) -> Snapshot:
        """See `OverrideStore`."""
        return self.page()

    def listen(self, listener: Callable[[], None]) -> None:
        """See `OverrideStore`."""
        self._listeners.append(listener)

    def page(self) -> Snapshot:
        """Return all overrides that have not ended, without waiting."""
        now_ms = self._store.now_ms()
        return Snapshot(str(self._version or ""), now_ms, _in_force(self._fields, now_ms))

    async def write(self, told: str, field: str = "", value: tuple[int, str] | None = None) -> str:
        """See `OverrideStore`."""
        now_ms = self._store.now_ms()
        fields = _in_force(self._fields, now_ms)
        before = fields.pop(field, None)
        if value is not None:
            if len(fields) >= ORDERS_MAX:
                raise OverridesFullError
            fields[field] = value
        old = "" if before is None else before[1]
        self._fields = fields
        self._version += 1
        self._lines = [f'{told},"old":{old or "null"},"at_ms":{now_ms}}}', *self._lines[: TOLD_MAX - 1]]
        for listener in self._listeners:
            listener()
        return old

    async def told(self, number: int) -> list[str]:
        """See `OverrideStore`."""
        return self._lines[:number]

    async def erase(self, keys: Sequence[bytes]) -> None:
        """See `OverrideStore`."""
        self._store.erase(keys)


def _fields(texts: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return those of *texts*, names and values in turn, that are overrides."""
    fields = {}
    for name, text in zip(texts[::2], texts[1::2], strict=True):
        ends, _, json = text.partition(" ")
        if name not in META and ends.isascii() and ends.isdigit():
            fields[name] = int(ends), json
    return fields


def _in_force(fields: dict[str, tuple[int, str]], now_ms: int) -> dict[str, tuple[int, str]]:
    return {field: value for field, value in fields.items() if not value[0] or now_ms < value[0]}
