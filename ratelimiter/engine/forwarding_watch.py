"""A watch on the first requests for a proxy that the policy does not know: then all callers share its address."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ratelimiter.core.client_address import parse_address

if TYPE_CHECKING:
    from ratelimiter.core.client_address import Address, Trust
    from ratelimiter.core.request import Request

SAMPLE = 20  # requests that must all look so, before a line is written
FORWARDING = frozenset({b"x-forwarded-for", b"forwarded", b"x-real-ip"})

log = logging.getLogger("ratelimiter.engine")


class ForwardingWatch:
    """Looks at the first requests under a policy, and writes at most one warning.

    Args:
        trust: the proxies that the policy trusts.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._seen = 0
        self._peers: set[str | None] = set()

    def looks_on(self, request: Request) -> bool:
        """Look at *request*; return False when the watch is over."""
        peer = parse_address(request.peer) if request.peer is not None else None
        values = {name.lower(): value for name, value in request.headers if name.lower() in FORWARDING}
        if not values or (peer is not None and self._trust.trusts(peer)):
            return False
        named = _first(values)
        rewritten = named is not None and named == peer
        # Without a trusted proxy a rewritten peer is the client, as it should be. A peer that is not local may be a
        # client that sends such headers itself.
        if self._trust.anyone is not rewritten or not (rewritten or _is_local(peer)):
            return False
        self._seen += 1
        self._peers.add(request.peer)
        if self._seen < SAMPLE:
            return True
        if rewritten:
            log.warning(
                "requests come with the address of X-Forwarded-For as their peer: the server has rewritten it, so "
                "trusted_proxies and headers of a proxy are ignored; start uvicorn with --no-proxy-headers"
            )
        else:
            log.warning(
                "every request comes with a forwarding header from %s, which the policy does not trust: all callers "
                "behind it share one limit; write its network into trusted_proxies",
                " and ".join(sorted({"a unix socket" if each is None else each for each in self._peers})[:3]),
            )
        return False


def _is_local(peer: Address | None) -> bool:
    """Return True for a peer that is more likely a proxy than a client: a unix socket, loopback, a private network."""
    return peer is None or peer.is_loopback or peer.is_private


def _first(values: dict[bytes, bytes]) -> Address | None:
    nodes = values.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
    return parse_address(nodes[0].strip()) if nodes[0].strip() else None
