"""Principals as people name them: `header:X-API-Key=alice`, `client=192.0.2.1`; and what stands for them elsewhere."""

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
    """Somebody, as named by who knows them; or all that a pattern fits."""

    source: str  # where their value is found, like "header:x-api-key"; "" for anywhere; "digest" for no value
    value: str  # never repeated in a log or an error

    @property
    def pattern(self) -> Pattern | None:
        """What it fits; None if it is one value alone."""
        return None if self.source == "digest" else parse_pattern(self.value)


def parse_named(text: str, *, anywhere: bool = False) -> Named:
    """Read `SOURCE=VALUE` or `digest=HEX`.

    Args:
        text: as a person wrote it.
        anywhere: whether a value alone will do, for whatever source it is found in.

    Raises:
        ValueError: it is neither. Does not repeat the value.
    """
    parts = _NAMED.fullmatch(text)
    if parts is None:
        if not anywhere or not text:
            msg = f"what is given is not a principal; {EXAMPLE}"
            raise ValueError(msg)
        named = Named("", text)
    elif parts[1] == "digest":
        if not _DIGEST.fullmatch(parts[2]):
            msg = (
                f"what is given is not a digest; write its {2 * DIGEST_BYTES} hexadecimal digits, as explain tells them"
            )
            raise ValueError(msg)
        return Named("digest", parts[2])
    else:
        named = Named(str(read_source(parts[1])), parts[2])
        if not named.value and named.source != "everyone":
            msg = f"what is given has nothing after {parts[1]}=; {EXAMPLE}"
            raise ValueError(msg)
    if len(named.value.encode()) > PRINCIPAL_BYTES_MAX:
        msg = f"what is given is longer than {PRINCIPAL_BYTES_MAX} bytes; write the principal's name"
        raise ValueError(msg)
    if named.source == "client" and named.pattern is None and _client(named.value, 64) is None:
        msg = "what is given after client= is not an address; write one like 192.0.2.1, or local for unix sockets"
        raise ValueError(msg)
    _ = named.pattern
    return named


def sources_of(policy: Policy) -> tuple[Source, ...]:
    """Where the rules of *policy* look for who is charged; the client last."""
    stated = dict.fromkeys(source for rule in policy.rules for source in rule.principal)
    return (*(source for source in stated if source != CLIENT), CLIENT)


def digests_of(named: Named, policy: Policy) -> frozenset[str]:
    """The digests by which *policy* knows *named*, which is no pattern: one for each source that may hold the value.

    Raises:
        ValueError: no rule charges whom that source names.
    """
    if named.source == "digest":
        return frozenset({named.value})
    known = [str(source) for source in sources_of(policy)]
    if named.source and named.source not in known:
        msg = f"{named.source} is not where a rule looks for who is charged; write {' or '.join(known)}"
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
    """What stands for a pattern where it must not be read."""
    return "~" + blake2b(f"{source}={pattern}".encode(), digest_size=DIGEST_BYTES, person=b"pattern").hexdigest()


def value_of(named: Named, policy: Policy) -> bytes:
    """The value that a pattern is held against for *named*; empty where only a digest is known."""
    if named.source == "digest":
        return b""
    value = _client(named.value, policy.trust.ipv6_prefix) if named.source == "client" else named.value
    return (value or "").encode()


def _client(text: str, ipv6_prefix: int) -> str | None:
    """What stands for the client at the address *text*; None if that is no address."""
    if text == "local":
        return text
    address = parse_address(text.partition("/")[0])
    return None if address is None else client_id(address, ipv6_prefix)
