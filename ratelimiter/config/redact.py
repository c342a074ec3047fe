"""The policy in force as plain values without secrets and passwords."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ratelimiter.core.principal import Source

if TYPE_CHECKING:
    from ratelimiter.core.policy import Policy

HIDDEN = "hidden"
HASH_BYTES = 8  # enough to tell the policies of one fleet apart; a collision gains an attacker nothing
# Parameters of a store's query that hold no secret; any other may.
HARMLESS = frozenset({"db", "client_name", "keys_max", "ssl_check_hostname", "ssl_cert_reqs"})


def disclosed(policy: Policy) -> dict[str, Any]:
    """Return all settings of *policy*, defaults included, ready for JSON. Equal policies give equal values."""
    plain: dict[str, Any] = _plain(policy)
    return plain | {"store": without_secrets(policy.store)}


def fingerprint(policy: Policy) -> str:
    """Return 16 hexadecimal digits, equal for policies that differ in secrets and passwords only."""
    text = json.dumps(disclosed(policy), sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()


def without_secrets(url: str) -> str:
    """Return *url* without user, password, and every query parameter that may be a secret."""
    parts = urlsplit(url)
    if parts.fragment or "@" in parts.path + parts.query:  # a password that should have been encoded, cut in two
        return f"{parts.scheme}://{HIDDEN}"
    places = ",".join(place.rpartition("@")[2] for place in parts.netloc.split(","))
    query = [(name, text if name in HARMLESS else HIDDEN) for name, text in parse_qsl(parts.query, True)]
    shown = urlunsplit((parts.scheme, places, parts.path, urlencode(query), ""))
    # For a scheme it does not know the library drops the slashes of an empty place.
    return shown if "://" in shown else shown.replace(":", "://", 1)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, Source):
        # Hidden fields are not in the repr either; derived fields add nothing.
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.repr and f.init}
    if isinstance(value, frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)  # text, a word of a closed set, a source, a network
