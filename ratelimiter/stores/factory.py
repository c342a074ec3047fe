"""The factory of stores: from a URL to the store."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ratelimiter.errors import ConfigError
from ratelimiter.stores import limits_bridge
from ratelimiter.stores.base import SILENT, StoreObserver
from ratelimiter.stores.fallback import FallbackStore
from ratelimiter.stores.leases import LeasingStore
from ratelimiter.stores.memory import KEYS_MAX, MemoryStore
from ratelimiter.stores.redis.cluster import open_cluster
from ratelimiter.stores.redis.store import TIMEOUT_MS, open_redis, open_sentinel
from ratelimiter.stores.refusal_cache import RefusalCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.policy import Policy
    from ratelimiter.stores.base import Store

    Opener = Callable[[SplitResult, int], Store]


def store_for(policy: Policy, observer: StoreObserver = SILENT) -> Store:
    """Return the store that *policy* names, as a limiter should use it. Opens no connection.

    A store outside this process may fail and costs a round trip. So it has a fallback, never raises a StoreError, and
    its refusals are cached. The embedded store is returned as it is.

    Args:
        policy: which store, and what of it.
        observer: is notified of the store's health; the embedded store has none to report.

    Raises:
        ConfigError: there is no such store, or it cannot keep a rule.
    """
    store = open_store(policy.store, timeout_ms=policy.decision_timeout_ms)
    store.check(policy)
    if store.embedded:
        return store
    store.observe(observer)
    if store.leases:
        store = LeasingStore(store, observer=observer)
    return RefusalCache(FallbackStore(store, local_share=policy.local_share, observer=observer))


def open_store(url: str, *, timeout_ms: int = TIMEOUT_MS) -> Store:
    """Return the store that *url* names. Opens no connection: that is left to the first charge.

    Args:
        url: scheme and rest.
        timeout_ms: within this time a charge is answered or fails, at least 1.

    Raises:
        ConfigError: the scheme is not known, or the rest does not fit it.
    """
    try:
        return opened(url, timeout_ms=timeout_ms)
    except ValueError as fault:
        msg = f"store: {fault}"
        raise ConfigError(msg) from None


def opened(url: str, *, timeout_ms: int = TIMEOUT_MS) -> Store:
    """Return the store that *url* names, as `open_store` does; the caller names the place of the URL in errors.

    Raises:
        ValueError: the scheme is not known, or the rest does not fit it. Never repeats a password.
    """
    opener = OPENERS.get(url.partition("://")[0].lower()) if "://" in url else None
    if opener is None:
        own = [scheme for scheme in OPENERS if not scheme.startswith(limits_bridge.PREFIX)]
        known = ", ".join(f"{scheme}://" for scheme in [*own, f"{limits_bridge.PREFIX}memcached"])
        close = get_close_matches(url.partition("://")[0].lower(), own, n=1) if "://" in url else []
        what = f"did you mean {close[0]}://?" if close else f"write one of {known}"
        msg = f"{_beginning(url)!r} does not begin the URL of a store; {what}"
        raise ValueError(msg)
    try:
        parts = urlsplit(url)
    except ValueError:
        msg = "what follows :// is not the rest of a URL; write [ and ] only around an IPv6 address"
        raise ValueError(msg) from None
    return opener(parts, timeout_ms)


def _beginning(url: str) -> str:
    """Return the scheme of *url*, the part that can be repeated: the rest may hold a password."""
    scheme, separator, _ = url.partition("://")
    return (scheme if separator else url.partition(":")[0])[:40] + separator


def _memory(parts: SplitResult, _timeout_ms: int) -> Store:
    """`memory://`, with `?keys_max=N`: how many keys are held, 100,000 by default."""
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    text = options.pop("keys_max", str(KEYS_MAX))
    if parts.netloc or parts.path or parts.fragment or options:
        msg = "a memory store has no host, no path and no option but keys_max; write memory:// or memory://?keys_max=100000"
        raise ValueError(msg)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):  # 10^9 keys fit no machine
        msg = f"{text[:40]!r} is not a number of keys from 1 to 999999999; write memory://?keys_max=100000"
        raise ValueError(msg)
    return MemoryStore(keys_max=int(text))


# A scheme, and what makes a store of a URL with it: connects to nothing, raises ValueError "... is not ...; write ...".
OPENERS: dict[str, Opener] = {
    "memory": _memory,
    "redis": open_redis,
    "rediss": open_redis,
    "unix": open_redis,
    "redis+sentinel": open_sentinel,
    "rediss+sentinel": open_sentinel,
    **{limits_bridge.PREFIX + scheme: limits_bridge.open_bridge for scheme in limits_bridge.SCHEMES},
    "redis+cluster": open_cluster,
    "rediss+cluster": open_cluster,
}
