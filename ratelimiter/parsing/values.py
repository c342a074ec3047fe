"""Readers of single settings.

Every function raises ValueError if it refuses the value: "VALUE is not ...; write ...". The message is about the value
only; the caller adds its place.
"""

from __future__ import annotations

import ipaddress
import os
import re
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms.calendar import known, names
from ratelimiter.core.json_body import JsonField, spelled
from ratelimiter.core.match import Match
from ratelimiter.core.principal import Source, parse_source
from ratelimiter.core.quota import LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, LIMIT_MAX
from ratelimiter.core.rule import RESPONSE_JSON, CostFrom
from ratelimiter.parsing.document import shown
from ratelimiter.parsing.schema import listed, suggestion
from ratelimiter.parsing.units import read_duration_ms

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.core.client_address import Network

SECRET_BYTES_MAX = 64  # the most that BLAKE2b takes as a key (RFC 7693 section 2.1)
TIMEOUT_MS_MAX = 10_000
PROXY_TIMEOUT_MS_MAX = 24 * 3600 * 1000
KINDS = ("bearer", "org", "client", "everyone")  # sources beside header:NAME
TOKEN = re.compile(r"[A-Za-z0-9-]{1,64}")  # a plausible name of a header


def read_lease(value: bool | int) -> int:
    """Return the units that a process may take in advance: all that fit, none, or so many."""
    if isinstance(value, bool):
        return LIMIT_MAX if value else 0
    return value


def read_headers(value: Any) -> tuple[str, ...]:
    """Return one header family or several that can be combined."""
    families = (value,) if isinstance(value, str) else tuple(value)
    if {"draft-11", "draft-06"} <= set(families):
        msg = "draft-11 and draft-06 both write RateLimit-Policy, each in its own way; write one of them"
        raise ValueError(msg)
    return families


def read_source(text: str) -> Source:
    """Return a principal source: `header:NAME`, `bearer`, `org`, `client` or `everyone`."""
    try:
        return parse_source(text)
    except ValueError:
        what = suggestion(text, KINDS) if ":" not in text else "write"
        if what.startswith("write"):
            name = text if TOKEN.fullmatch(text) else "X-API-Key"
            what = f"write header:{name}, {listed(KINDS)}"
        msg = f"{shown(text)} is not a principal source; {what}"
        raise ValueError(msg) from None


def read_network(text: str) -> Network:
    """Return a network, or one address as a network of its own."""
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        meant = None
    if meant is None or "%" in text:  # a zone is no part of an address that travels in a header
        msg = f"{shown(text)} is not a network; write one like 10.0.0.0/8 or 2001:db8::/32"
        raise ValueError(msg)
    address = text.partition("/")[0]
    if ipaddress.ip_address(address) != meant.network_address:
        msg = f"{shown(text)} is an address within a network; write {meant} for the network, or {address}"
        raise ValueError(msg)
    return meant


def read_decision_timeout_ms(text: str) -> int:
    """Return a duration from 1 ms to 10 s, in milliseconds."""
    return read_duration_ms(text, 1, TIMEOUT_MS_MAX, "50ms")


def read_proxy_timeout_ms(text: str, least_ms: int) -> int:
    """Return a duration from *least_ms* to 24 h, in milliseconds."""
    return read_duration_ms(text, least_ms, PROXY_TIMEOUT_MS_MAX, "10s")


def read_lease_ttl_ms(text: str) -> int:
    """Return a duration from 1 s to 1 h, in milliseconds."""
    return read_duration_ms(text, LEASE_TTL_MS_MIN, LEASE_TTL_MS_MAX, "30s")


def read_timezone(text: str) -> str:
    """Return the name of a time zone of the IANA database."""
    if not known(text):
        msg = f"{shown(text)} is not a time zone; {_zone_meant(text)}"
        raise ValueError(msg)
    return text


def _zone_meant(text: str) -> str:
    close = get_close_matches(text, names(), n=1)
    return f"did you mean {close[0]}?" if close else "write Europe/Berlin, for example"


def read_local_share(share: float) -> float:
    """Return a number above 0 and up to 1."""
    if not 0 < share <= 1:  # the schema tells this, too, but not of NaN
        msg = f"{shown(share)} is not a number above 0 and up to 1; write 0.5"
        raise ValueError(msg)
    return share


def read_secret_file(path: Path) -> bytes:
    """Return the secret in a file, without surrounding white space."""
    try:
        with path.open("rb") as file:
            secret = file.read(4096).strip()
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        msg = f"{shown(os.fspath(path))} cannot be read ({reason}); name a file that this process may read"
        raise ValueError(msg) from None
    return read_secret(secret)


def read_secret(secret: bytes) -> bytes:
    """Return *secret* if its length is valid. The message does not repeat it."""
    if not 1 <= len(secret) <= SECRET_BYTES_MAX:
        what = "write 32 random bytes in hexadecimal"
        msg = f"a secret of {len(secret)} bytes is not one of 1 to {SECRET_BYTES_MAX}; {what}"
        raise ValueError(msg)
    return secret


def read_cost_from(text: str) -> CostFrom:
    """Return the place of a request's cost: `request_header NAME`, `response_header NAME` or `response_json PATH`."""
    where, _, name = text.partition(" ")
    return CostFrom(where, name if where == RESPONSE_JSON else name.lower())


def read_count(statuses: list[int | str]) -> frozenset[str]:
    """Return the statuses, and classes of statuses, that count."""
    return frozenset(map(str, statuses))


def read_json_field(name: str, value: Any) -> JsonField:
    """Return a condition on one field of a JSON body: its value, or one of several."""
    values = []
    for item in value if isinstance(value, list) else [value]:
        try:
            values.append(spelled(item))
        except ValueError:
            msg = f"{shown(item)} is not a number that every JSON parser can read; write a smaller one, or text"
            raise ValueError(msg) from None
    return JsonField(name, tuple(values))


def read_template(template: str) -> None:
    """Refuse a template that no canonical path can match."""
    if "?" in template or "#" in template:
        msg = f"{shown(template)} is more than a path; write the part before ? and #"
        raise ValueError(msg)
    if re.search("%[0-9A-Fa-f]{2}", template):
        msg = f"{shown(template)} is percent-encoded; write the characters themselves"
        raise ValueError(msg)
    segments = template.split("/")[1:]
    if "" in segments[:-1] or {".", ".."} & set(segments):
        msg = f"{shown(template)} has an empty or a dot segment, which no path keeps; write it without"
        raise ValueError(msg)
    if "**" in segments[:-1]:
        msg = f"{shown(template)} has ** before its end; write * for one segment, and ** only at the end"
        raise ValueError(msg)
    try:
        Match(path=template)
    except ValueError:
        msg = f"{shown(template)} has a wildcard inside a segment; write a whole one, like /users/{{id}} or /users/*"
        raise ValueError(msg) from None


def read_instant_ms(text: str) -> int:
    """Return a moment with its time zone (RFC 3339) as Unix time in ms."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None or "T" not in text:
        msg = f"{shown(text)} is not a moment with its time zone; write one like 2027-01-01T00:00:00Z"
        raise ValueError(msg)
    return int(instant.timestamp() * 1000)
