"""Principals as people write them: `header:X-API-Key=alice`, `client=192.0.2.1`; and their digests."""

from __future__ import annotations

import ipaddress
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.client_address import client_id, parse_address
from ratelimiter.core.overrides import parse_pattern
from ratelimiter.core.planner import reader_for
from ratelimiter.core.prefix_table import parse_network
from ratelimiter.core.principal import CLIENT, DIGEST_BYTES
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX
from ratelimiter.parsing.values import read_source

if TYPE_CHECKING:
    from ratelimiter.core.client_address import Network
    from ratelimiter.core.overrides import Pattern
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.principal import Source

_NAMED = re.compile(
    r"((?:header|cookie|query|path|json|form):[^=]*|bearer|org|identified|client|everyone|digest)=(.*)", re.DOTALL
)
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

    @property
    def is_network(self) -> bool:
        """True for a network of clients in CIDR notation, one of a single client included."""
        return self.source == "client" and "/" in self.value and self.pattern is None

    def network(self, ipv6_prefix: int) -> Network | None:
        """Return the network of more than one client; None for a single value.

        Args:
            ipv6_prefix: the bits of an IPv6 address that name one client.

        Raises:
            ValueError: the value is not a network that the policy can tell apart.
        """
        if not self.is_network:
            return None
        network = parse_network(self.value, ipv6_prefix)
        return None if network.prefixlen == (32 if network.version == 4 else ipv6_prefix) else network


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
    if named.is_network:
        parse_network(named.value, 128)  # the policy may tell less apart, and says so
    elif named.source == "client" and named.pattern is None and _client(named.value, 64) is None:
        msg = "the value after client= is not an address; write one like 192.0.2.1 or 10.0.0.0/8, or local"
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
            value = _client(named.value, policy.trust.ipv6_prefix) if named.source else _anywhere(named.value, policy)
        elif source == "everyone":
            value = "" if named.source else None
        if value is not None:
            digests.add(reader.principal(source, value.encode()).digest)
    return frozenset(digests)


def pattern_digest(source: str, pattern: str) -> str:
    """Return the digest that identifies a pattern without revealing it."""
    return "~" + blake2b(f"{source}={pattern}".encode(), digest_size=DIGEST_BYTES, person=b"pattern").hexdigest()


def client_value(text: str, policy: Policy) -> str | None:
    """Return the value by which *policy* charges the client at the address *text*; None if it is not an address."""
    return None if "/" in text else _client(text, policy.trust.ipv6_prefix)


def network_digest(network: Network) -> str:
    """Return the digest that identifies a network of clients without revealing it, however it was written."""
    return pattern_digest("client", str(network))


def value_of(named: Named, policy: Policy) -> bytes:
    """Return the value of *named* that patterns are compared with; empty if only a digest is known."""
    if named.source == "digest":
        return b""
    value = _client(named.value, policy.trust.ipv6_prefix) if named.source == "client" else named.value
    return (value or "").encode()


def _anywhere(text: str, policy: Policy) -> str | None:
    """Return the id of the client that a value for any source may name; None if it names none.

    Raises:
        ValueError: it may be a network, which is of clients only.
    """
    if "/" not in text:
        return _client(text, policy.trust.ipv6_prefix)
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    msg = "this may be a network of clients; write client= in front of it"
    raise ValueError(msg)


def _client(text: str, ipv6_prefix: int) -> str | None:
    """Return the id of the client at the address *text*; None if it is not an address."""
    if text == "local":
        return text
    if "/" in text:  # of one client
        text = str(parse_network(text, ipv6_prefix).network_address)
    address = parse_address(text)
    return None if address is None else client_id(address, ipv6_prefix)
