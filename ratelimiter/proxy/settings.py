"""Bounds of the proxy: times, sizes and counts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ratelimiter.core.path import canonical_path
from ratelimiter.core.request import MalformedRequest

if TYPE_CHECKING:
    from ratelimiter.core.match import Match

MAY_BE_NOTHING = frozenset({"body_max", "body_rate_min", "drains_max", "lame_duck_ms", "linger_max"})


# Meanings of a client's FIN while its request is in flight: the proxy probes the client, it has left, or it stays.
ASK, LEAVE, STAY = "ask", "leave", "stay"
DROP, PASS, REFUSE = "drop", "pass", "refuse"
CHOICES = {"half_closed": (ASK, LEAVE, STAY), "underscore_headers": (DROP, PASS, REFUSE)}


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The proxy's own limits. Times are in milliseconds and kept to within a quarter of a second, or a quarter of the
    shortest of them.

    Raises:
        ValueError: one of them is below 1; of those in `MAY_BE_NOTHING`, below 0.
    """

    head_timeout_ms: int = 10_000  # from a request's first byte, or the connection's begin, to the end of its head
    idle_timeout_ms: int = 60_000  # between two requests of one connection
    body_timeout_ms: int = 30_000  # without a byte of a body that is due
    body_rate_min: int = 250  # bytes per second that a body must come at on the average; 0 for none
    body_grace_ms: int = 10_000  # before that is asked
    write_timeout_ms: int = 30_000  # for a client to take in what one buffer holds
    half_close_ms: int = 1_000  # that a client which has closed its side still waits for its answer to begin
    drain_timeout_ms: int = 60_000  # for a response to end that is read on although its client has left
    tunnel_timeout_ms: int = 3_600_000  # without a byte in either direction, after an upgrade
    half_closed: str = ASK
    proxy_protocol: bool = False  # connections of trusted peers begin with a header of the PROXY protocol
    underscore_headers: str = DROP  # of a request: CGI and WSGI read them as their twins with hyphens
    connect_timeout_ms: int = 2_000  # for a connection to the upstream
    upstream_timeout_ms: int = 60_000  # without a byte of a response that is due
    upstream_timeouts: tuple[
        tuple[Match, int], ...
    ] = ()  # others than that, in ms, for some requests: the first counts
    upstream_idle_ms: int = 4_000  # that a connection to the upstream is kept: less than servers keep theirs
    upstream_age_ms: int = 30_000  # after which such a connection is used no more: the name may have other addresses
    linger_ms: int = 30_000  # that a client which still sends is read on after its last answer, so that this arrives

    head_max: int = 32_768  # bytes of a request's or response's head
    target_max: int = 8_192  # bytes of a request target
    fields_max: int = 100  # header fields of a request, or of a response
    body_max: int = 0  # bytes of a request's body; 0 for any number
    linger_max: int = 67_108_864  # bytes that are thrown away in that time
    connections_max: int = 10_000  # of clients, per worker
    upstream_connections_max: int = 1_024  # to the upstream, tunnels among them, per worker
    drains_max: int = 100  # of responses that are read on although their clients have left; per worker
    connections_per_address_max: int = 256  # of them from one address, unless it is a trusted proxy's; per worker

    lame_duck_ms: int = 5_000  # after SIGTERM, while others still send requests here
    grace_ms: int = 20_000  # after that, for what is under way

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("proxy_protocol", "upstream_timeouts"):
                continue
            if field.name in CHOICES:
                if value not in CHOICES[field.name]:
                    msg = f"{field.name} must be one of {', '.join(CHOICES[field.name])}, not {value!r}"
                    raise ValueError(msg)
                continue
            least = 0 if field.name in MAY_BE_NOTHING else 1
            if value < least:
                msg = f"{field.name} must be at least {least}, not {value}"
                raise ValueError(msg)

    def timeout_ms_of(self, method: str, target: bytes) -> int:
        """Return the time that the upstream may be silent about a request."""
        if self.upstream_timeouts:
            try:
                path = canonical_path(target)
            except MalformedRequest:
                return self.upstream_timeout_ms
            for match, timeout_ms in self.upstream_timeouts:
                if match.matches(method, path):
                    return timeout_ms
        return self.upstream_timeout_ms

    @property
    def tick_s(self) -> float:
        """Seconds between two looks at the deadlines."""
        shortest_ms: int = min(
            getattr(self, f.name) for f in fields(self) if f.name.endswith(("timeout_ms", "close_ms"))
        )
        return min(0.25, shortest_ms / 4000)
