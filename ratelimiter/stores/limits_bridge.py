"""Stores by way of the package `limits`: memcached, MongoDB and others, for deployments without Redis.

The URL is that of `limits` after `limits+`: `limits+memcached://host:11211`, `limits+mongodb://host:27017`,
`limits+redis://host:6379`. `strategy=` in its query names what counts:

| strategy | what it is | admits in any window of W, at worst |
|---|---|---|
| `sliding` (default where there is one) | two counters, the older one weighted by its age | almost 2 L |
| `moving` | an exact log, of up to L entries | L, while the clocks of all processes agree |
| `fixed` (default elsewhere) | one counter, from the first request on | 2 L |

Memcached has `sliding` and `fixed`, the others have all three. `memory` is not among them, as memory:// is better.

What is weaker than in the stores of our own, whatever the strategy:

* A decision is several round trips: a look at each rule, then a charge of each. Two requests at the same time may both
  look and both find room. A charge that comes too late is refused by the storage (in `fixed` it counts all the same),
  but what the rules before it have been charged is not given back: a request may be charged and refused.
* Time is that of each process, not of the store. In `moving` a process whose clock is behind counts what has left.
* Numbers are estimates. In `moving` and `fixed` retry is when something becomes free, which for a cost above 1 may be
  too little; in `sliding` it is computed, to the millisecond, from counters that others may charge meanwhile.
* A window is a whole number of seconds.
* In `fixed` and `moving` a changed window length only applies to what is counted from then on.

Tested against memcached and Redis. MongoDB takes the same path and is untested.
"""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from math import ceil, floor
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlencode, urlunsplit

from ratelimiter.clock import unix_ms
from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import NEVER, STORE, Receipt, Tally
from ratelimiter.errors import (
    ConfigError,
    Kind,
    StoreError,
    StoreFault,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
)
from ratelimiter.stores.base import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement

# `limits` is imported where it is used: it takes long, and most have no use for it here.
# ruff: noqa: PLC0415

PREFIX = "limits+"
SCHEMES = {  # of `limits` that make sense here, and the package that each needs beside it
    "memcached": "memcachio",
    "mongodb": "motor",
    "mongodb+srv": "motor",
    "redis": "redis",
    "rediss": "redis",
    "redis+cluster": "redis",
    "redis+sentinel": "redis",
}
WEAKNESS = "limits+ takes several round trips per decision, is not atomic over rules, and its windows are approximate"
SECOND_MS = 1000

# Strategies by the word in a URL, the preferred first: the class in `limits`, and what a storage must have for it.
STRATEGIES = {
    "sliding": ("SlidingWindowCounterRateLimiter", "get_sliding_window"),
    "fixed": ("FixedWindowRateLimiter", "get_expiry"),
    "moving": ("MovingWindowRateLimiter", "get_moving_window"),
}
# The clients' errors as ours, by the name of their class or of one that they derive from: none of those
# packages need be there, and `limits` hides which one it uses.
ERRORS: dict[str, tuple[type[StoreError], Kind]] = {
    "AuthenticationError": (StoreMisconfigured, Kind.AUTHENTICATION),
    "AuthenticationFailed": (StoreMisconfigured, Kind.AUTHENTICATION),
    "AuthorizationError": (StoreMisconfigured, Kind.PERMISSION),
    "NoPermissionError": (StoreMisconfigured, Kind.PERMISSION),
    "SSLError": (StoreMisconfigured, Kind.TLS),
    "TimeoutError": (StoreTimeout, Kind.TIMEOUT),
    "NetworkTimeout": (StoreTimeout, Kind.TIMEOUT),
    "BusyLoadingError": (StoreUnavailable, Kind.LOADING),
    "OutOfMemoryError": (StoreUnavailable, Kind.OUT_OF_MEMORY),
    "ReadOnlyError": (StoreUnavailable, Kind.READ_ONLY),
    "ClusterDownError": (StoreUnavailable, Kind.CLUSTER_DOWN),
    "MasterNotFoundError": (StoreUnavailable, Kind.NO_MASTER),
    "ServerError": (StoreUnavailable, Kind.OUT_OF_MEMORY),  # memcached says so when it cannot hold a value
    "NoAvailableNodes": (StoreUnavailable, Kind.UNREACHABLE),
    "ServerSelectionTimeoutError": (StoreUnavailable, Kind.UNREACHABLE),
    "ConnectionError": (StoreUnavailable, Kind.UNREACHABLE),
    "ConnectionFailure": (StoreUnavailable, Kind.UNREACHABLE),
    "OSError": (StoreUnavailable, Kind.UNREACHABLE),
}


class Look(NamedTuple):
    """The counters of one hit's key in a storage, before it is charged."""

    used: int  # units that count now
    reset_ms: int  # until that becomes less; 0 when nothing counts
    retry_after_ms: int  # until the hit would fit; 0 when it does, NEVER when it never will


class LimitsBridge(Store):
    """Tallies in a storage of `limits`, approximately; this module's text says what is weaker.

    Args:
        url: of the storage, as `limits` spells it, without `async+`.
        strategy: sliding, moving or fixed; by default the first of sliding and fixed that the storage has.
        timeout_ms: within this time `charge` returns or raises, at least 1.

    Raises:
        ValueError: there is no such storage, its client is not installed, or it does not have the strategy.
    """

    def __init__(self, url: str, *, strategy: str = "", timeout_ms: int = 50) -> None:
        self._url = url
        self._timeout_ms = timeout_ms
        self._storage = _storage(url)
        having = [word for word, (_, needed) in STRATEGIES.items() if hasattr(self._storage, needed)]
        self.strategy = strategy or having[0]
        if self.strategy not in having:
            msg = f"{self.strategy[:40]!r} is not a strategy of {url.partition('://')[0]}; write {' or '.join(having)}"
            raise ValueError(msg)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter: Any = None
        self._look = {"sliding": self._look_sliding, "moving": self._look_moving, "fixed": self._look_fixed}[
            self.strategy
        ]

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none, but for what other requests do at the same time.

        Raises:
            StoreUnavailable: no connection, or the storage cannot serve. `StoreTimeout`: no answer in time.
            StoreFault: the storage answered what makes no sense.
            StoreMisconfigured: it does not let us in.
            ConfigError: a window is not a whole number of seconds.
        """
        self._bind()
        for hit in hits:
            seconds(hit.quota)
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await self._charge(hits)
        except TimeoutError as error:
            msg = f"no answer within {self._timeout_ms} ms"
            raise StoreTimeout(msg) from error
        except Exception as error:
            raise _meant(error) from error

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        """Do nothing, as a storage takes nothing back: what a limiter charged stays when one further in refuses."""

    def check(self, policy: Policy) -> None:
        """Refuse a policy that a storage cannot keep.

        Raises:
            ConfigError: a limit is not one of a window, a window is not a whole number of seconds, or a charge is only
                known later.
        """
        for rule in policy.rules:
            if rule.quota.kind != Quota.kind:
                msg = f"store: {rule.name} is a limit of another kind ({rule.quota.kind}), which {PREFIX} cannot keep"
                raise ConfigError(f"{msg}; write redis:// or memory://")
            if rule.settles:
                msg = f"store: {rule.name} is settled when the response is there, and {PREFIX} takes nothing back"
                raise ConfigError(f"{msg}; write redis:// or memory://")
            for _, quota in rule.plans:
                if quota is not None:
                    seconds(quota)
            seconds(rule.quota)

    async def close(self) -> None:
        """Let go of connections. A closed store may be used again and opens them anew."""
        loop, self._loop = self._loop, None
        if loop is asyncio.get_running_loop():
            await _disconnect(self._storage)

    def _bind(self) -> None:
        """Have a storage of this event loop: clients are of the loop that they first ran in."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        from limits.aio import strategies

        if self._limiter is not None:
            self._storage = _storage(self._url)
        self._limiter = getattr(strategies, STRATEGIES[self.strategy][0])(self._storage)
        self._loop = loop

    async def _charge(self, hits: Sequence[Hit]) -> Receipt:
        looks = [await self._look(hit) for hit in hits]
        refusing = [hit for hit, look in zip(hits, looks, strict=True) if look.retry_after_ms]
        withheld = {hit.rule.name for hit in refusing if hit.rule.shadow}
        admitted = all(hit.rule.shadow for hit in refusing)
        for index, hit in enumerate(hits if admitted else ()):
            if not hit.cost or hit.rule.name in withheld:
                continue
            if await self._limiter.hit(_Item(hit), cost=hit.cost):
                look = looks[index]
                looks[index] = Look(look.used + hit.cost, look.reset_ms or hit.quota.window_ms, 0)
                continue
            # Another request was faster. Look again for the time to wait; there may be room again by now.
            look = await self._look(hit)
            looks[index] = look._replace(retry_after_ms=look.retry_after_ms or max(1, look.reset_ms))
            if not hit.rule.shadow:
                admitted = False
                break
        return Receipt(unix_ms(), admitted, [Tally(*look) for look in looks])

    async def _look_sliding(self, hit: Hit) -> Look:
        window_s = seconds(hit.quota)
        before, before_left_s, now, now_left_s = await self._storage.get_sliding_window(_Item(hit).key_for(), window_s)
        return slid(hit, before, before_left_s, now, now_left_s - window_s)

    async def _look_moving(self, hit: Hit) -> Look:
        window_s = seconds(hit.quota)
        oldest_s, used = await self._storage.get_moving_window(_Item(hit).key_for(), hit.quota.limit, window_s)
        return _waiting(hit, used, oldest_s + window_s)

    async def _look_fixed(self, hit: Hit) -> Look:
        key = _Item(hit).key_for()
        used = await self._storage.get(key)
        return _waiting(hit, used, await self._storage.get_expiry(key) if used else 0)


def open_bridge(parts: SplitResult, timeout_ms: int) -> LimitsBridge:
    """Return the store of a `limits+...://` URL.

    Raises:
        ValueError: the URL cannot be used. Never repeats a password.
    """
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    strategy = options.pop("strategy", "")
    if strategy and strategy not in STRATEGIES:
        msg = f"{strategy[:40]!r} is not a strategy; write {', '.join(STRATEGIES)}"
        raise ValueError(msg)
    url = urlunsplit(parts._replace(scheme=parts.scheme.removeprefix(PREFIX), query=urlencode(options)))
    return LimitsBridge(url, strategy=strategy, timeout_ms=timeout_ms)


def seconds(quota: AnyQuota) -> int:
    """Return the length of the window in seconds, the smallest unit of `limits`.

    Raises:
        ConfigError: it is not whole.
    """
    window_s, rest = divmod(quota.window_ms, SECOND_MS)
    if rest:
        msg = f"store: a window of {quota.window_ms} ms is not a whole number of seconds; write another, or redis://"
        raise ConfigError(msg)
    return window_s


def slid(hit: Hit, before: int, before_left_s: float, now: int, now_left_s: float) -> Look:
    """Return the tally of *hit* by two counters: the last one, which loses its weight evenly, and the present one.

    Args:
        hit: what would be charged.
        before: units of the last window.
        before_left_s: until they have lost all weight.
        now: units of the present window.
        now_left_s: until it becomes the last one.
    """
    window_s = hit.quota.window_ms / SECOND_MS
    weighted = before * before_left_s / window_s if before else 0.0
    used = floor(weighted) + now
    if not used:
        return Look(0, 0, 0 if hit.cost <= hit.quota.limit else NEVER)
    # Either the last window loses a unit next, or the present one begins to.
    reset_s = before_left_s - floor(weighted) * window_s / before if weighted >= 1 else max(0.0, now_left_s)
    room = hit.quota.limit - hit.cost
    if room < 0:
        wait_ms = NEVER
    elif used <= room or not hit.cost:
        wait_ms = 0
    elif now <= room:  # what is left of the last window must weigh less than the room and one
        wait_ms = _after_ms(before_left_s - (room - now + 1) * window_s / before)
    else:
        wait_ms = _after_ms(max(0.0, now_left_s) + window_s - (room + 1) * window_s / now)
    return Look(used, _after_ms(reset_s), wait_ms)


def _after_ms(moment_s: float) -> int:
    """Return the first whole millisecond after *moment_s*, with the weight of that moment, within a nanosecond."""
    return max(1, floor(moment_s * SECOND_MS + 1e-6) + 1)


def _waiting(hit: Hit, used: int, reset_s: float) -> Look:
    """Return the tally of *hit* for a count of which something leaves at *reset_s*, Unix time."""
    reset_ms = max(1, ceil((reset_s - time.time()) * SECOND_MS)) if used else 0
    room = hit.quota.limit - hit.cost
    if room < 0:
        return Look(used, reset_ms, NEVER)
    return Look(used, reset_ms, reset_ms if used > room and hit.cost else 0)


class _Item:
    """A limit as the strategies of `limits` want it, under our key: theirs hold the limit, so a changed one would start
    anew (7).
    """

    def __init__(self, hit: Hit) -> None:
        self.amount = hit.quota.limit
        self._key = hit.key.decode("latin-1")
        self._window_s = seconds(hit.quota)

    def key_for(self) -> str:
        return self._key

    def get_expiry(self) -> int:
        return self._window_s


def _storage(url: str) -> Any:
    from limits.errors import ConfigurationError
    from limits.storage import storage_from_string

    scheme = url.partition("://")[0]
    client = SCHEMES[scheme]
    if find_spec(client) is None:
        msg = f"{PREFIX}{scheme}:// needs the package {client}, which is not installed; write pip install {client}"
        raise ValueError(msg)
    options: dict[str, Any] = {"wrap_exceptions": True}
    if client == "redis":
        # The client that we have anyway; it must not send again what may have been counted.
        options |= {"implementation": "redispy", "retry": None, "protocol": 2}
    try:
        return storage_from_string(f"async+{url}", **options)
    except (ConfigurationError, ValueError):
        msg = f"what follows {PREFIX}{scheme}:// is not what limits wants; write its host and port"
        raise ValueError(msg) from None


def _meant(error: Exception) -> Exception:
    """Return the StoreError that stands for *error* of a client or of `limits`."""
    if isinstance(error, (StoreError, ConfigError)):
        return error
    cause = getattr(error, "storage_error", error)
    names = [cls.__name__ for cls in type(cause).__mro__]
    kind: tuple[type[StoreError], Kind] = (StoreFault, Kind.REFUSED)
    kind = next((ERRORS[name] for name in names if name in ERRORS), kind)
    return kind[0](f"{names[0]}: {cause}", kind[1])


async def _disconnect(storage: Any) -> None:
    """Close the client of *storage*: `limits` opens it and leaves it at that."""
    client = getattr(storage, "bridge", storage)
    client = getattr(client, "storage", None) or getattr(client, "_storage", None)
    closing = getattr(client, "aclose", None) or getattr(getattr(client, "connection_pool", client), "close", None)
    if closing is not None:
        done: Awaitable[object] | None = closing()
        if done is not None:
            await done
