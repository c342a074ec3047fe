"""Principals as people write them: `header:X-API-Key=alice`, `client=192.0.2.1`; and their digests."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.client_address import client_id, parse_address
from ratelimiter.core.overrides import parse_pattern
from ratelimiter.core.planner import reader_for
from ratelimiter.core.principal import CLIENT, DIGEST_BYTES
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX
from ratelimiter.parsing.values import read_source

if TYPE_CHECKING:
    from ratelimiter.core.overrides import Pattern
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.principal import Source

_NAMED = re.compile(r"(header:[^=]*|bearer|org|client|everyone|digest)=(.*)", re.DOTALL)
_DIGEST = re.compile(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}")
EXAMPLE = "write one like header:X-API-Key=alice, client=192.0.2.1, bearer=NAME, org=NAME or digest=HEX"


class Named(NamedTuple):
    """A principal as an operator names it, or a pattern of principals."""

    source: str  # source of the value, like "header:x-api-key"; "" for any; "digest" if only the digest is known
    value: str  # never repeated in a log or an error

    @property
    def pattern(self) -> Pattern | None:
        """The pattern; None for a single value."""
        return None if self.source == "digest" else parse_pattern(self.value)


def parse_named(text: str, *, anywhere: bool = False) -> Named:
    """Read `SOURCE=VALUE` or `digest=HEX`.

    Args:
        text: the notation.
        anywhere: accept a value alone, which then fits every source.

    Raises:
        ValueError: it is neither; the message does not repeat the value.
    """
    parts = _NAMED.fullmatch(text)
    if parts is None:
        if not anywhere or not text:
            msg = f"this is not a principal; {EXAMPLE}"
            raise ValueError(msg)
        named = Named("", text)
    elif parts[1] == "digest":
        if not _DIGEST.fullmatch(parts[2]):
            msg = f"this is not a digest; write its {2 * DIGEST_BYTES} hexadecimal digits, as explain shows them"
            raise ValueError(msg)
        return Named("digest", parts[2])
    else:
        named = Named(str(read_source(parts[1])), parts[2])
        if not named.value and named.source != "everyone":
            msg = f"there is no value after {parts[1]}=; {EXAMPLE}"
            raise ValueError(msg)
    if len(named.value.encode()) > PRINCIPAL_BYTES_MAX:
        msg = f"the principal is longer than {PRINCIPAL_BYTES_MAX} bytes; write the principal's name"
        raise ValueError(msg)
    if named.source == "client" and named.pattern is None and _client(named.value, 64) is None:
        msg = "the value after client= is not an address; write one like 192.0.2.1, or local for unix sockets"
        raise ValueError(msg)
    _ = named.pattern
    return named


def sources_of(policy: Policy) -> tuple[Source, ...]:
    """Return the sources of principals in *policy*; the client last."""
    stated = dict.fromkeys(source for rule in policy.rules for source in rule.principal)
    return (*(source for source in stated if source != CLIENT), CLIENT)


def digests_of(named: Named, policy: Policy) -> frozenset[str]:
    """Return the digests of *named*, which is no pattern, under *policy*: one for each source that may hold the value.

    Raises:
        ValueError: no rule charges that source.
    """
    if named.source == "digest":
        return frozenset({named.value})
    known = [str(source) for source in sources_of(policy)]
    if named.source and named.source not in known:
        msg = f"no rule charges {named.source}; write {' or '.join(known)}"
        raise ValueError(msg)
    reader = reader_for(policy)
    digests = set()
    for source in [named.source] if named.source else known:
        value: str | None = named.value
        if source == "client":
            value = _client(named.value, policy.trust.ipv6_prefix)
        elif source == "everyone":
            value = "" if named.source else None
        if value is not None:
            digests.add(reader.principal(source, value.encode()).digest)
    return frozenset(digests)


def pattern_digest(source: str, pattern: str) -> str:
    """Return the digest that identifies a pattern without revealing it."""
    return "~" + blake2b(f"{source}={pattern}".encode(), digest_size=DIGEST_BYTES, person=b"pattern").hexdigest()


def value_of(named: Named, policy: Policy) -> bytes:
    """Return the value of *named* that patterns are compared with; empty if only a digest is known."""
    if named.source == "digest":
        return b""
    value = _client(named.value, policy.trust.ipv6_prefix) if named.source == "client" else named.value
    return (value or "").encode()


def _client(text: str, ipv6_prefix: int) -> str | None:
    """Return the id of the client at the address *text*; None if it is not an address."""
    if text == "local":
        return text
    address = parse_address(text.partition("/")[0])
    return None if address is None else client_id(address, ipv6_prefix)
