"""What all client connections of a proxy have in common, and how many there may be."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from ratelimiter.clock import stopwatch_s
from ratelimiter.proxy.forwarded import X_FORWARDED, field_lines, status_line
from ratelimiter.proxy.head import WRITTEN_ANEW
from ratelimiter.proxy.timeouts import Sweep
from ratelimiter.proxy.upstream_connection import Pool, Target

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from ratelimiter.core.reply import Reply
    from ratelimiter.proxy.client_connection import ClientConnection
    from ratelimiter.proxy.interfaces import Errors, Judge, Observer
    from ratelimiter.proxy.settings import Bounds

    Header = tuple[bytes, bytes]

log = logging.getLogger(__name__)

CROWDED_TOLD_S = 60.0  # between two log lines about it
HEADS_MAX = 256  # of replies, about 1 kB each: the judge may send the same one again and again


def _nobody(_: str | None) -> bool:
    return False


class Service:
    """One upstream, and whoever stands between it and its clients.

    Args:
        target: where the upstream is.
        judge: asked once for every request.
        errors: words the answers that the proxy gives by itself.
        bounds: what nobody may exceed.
        loop: the event loop.
        observer: is told every exchange.
        trusts: whether a peer, None on a unix socket, may speak for others and be many clients at once.
        families: how the upstream is told who is behind us: `x-forwarded`, `forwarded` or both.
        via: what this proxy calls itself in Via; empty for no such field.

    Attributes:
        draining: whether every response is its connection's last; set it to let clients go.
        turned_away: connections that were closed at once because there were too many.
    """

    def __init__(
        self,
        target: Target,
        judge: Judge,
        errors: Errors,
        bounds: Bounds,
        loop: asyncio.AbstractEventLoop,
        *,
        observer: Observer | None = None,
        trusts: Callable[[str | None], bool] = _nobody,
        families: Sequence[str] = (X_FORWARDED,),
        via: bytes = b"",
    ) -> None:
        self.judge = judge
        self.errors = errors
        self.bounds = bounds
        self.loop = loop
        self.observer = observer
        self.trusts = trusts
        self.families = families
        self.via = via
        self.pool = Pool(target, bounds, frozenset(), loop)
        self.dropped = WRITTEN_ANEW
        self.draining = False
        self.turned_away = 0
        self._clients: set[ClientConnection] = set()
        self._told_s = float("-inf")  # when it was last logged that an address has too many
        self._heads: dict[tuple[int, int], tuple[bytes, Reply, Sequence[Header]]] = {}
        self._addresses: Counter[str] = Counter()
        self._sweep = Sweep(loop, bounds.tick_s)

    def __len__(self) -> int:
        """Client connections open now."""
        return len(self._clients)

    def say(self, *, to_upstream: frozenset[bytes], to_client: frozenset[bytes]) -> None:
        """Name the fields, in lower case, that verdicts bring along: what others say in them is dropped."""
        self.dropped = WRITTEN_ANEW | to_upstream
        self.pool.say(to_client)

    def head_of(self, reply: Reply, headers: Sequence[Header]) -> bytes:
        """The head of a reply of our own, up to what differs between connections."""
        key = (id(reply), id(headers))
        kept = self._heads.get(key)
        if kept is not None:
            return kept[0]
        head = status_line(reply.status) + field_lines(reply.headers) + field_lines(headers)
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[key] = (head, reply, headers)  # which keeps their identities from being given to others
        return head

    def enter(self, client: ClientConnection) -> bool:
        """Take *client* in, if there is room for it."""
        peer = client.peer
        bounds = self.bounds
        crowded = (
            peer is not None and self._addresses[peer] >= bounds.connections_per_address_max and not self.trusts(peer)
        )
        if crowded:
            self._tell_crowded()
        if crowded or len(self._clients) >= bounds.connections_max:
            self.turned_away += 1
            return False
        if peer is not None:
            self._addresses[peer] += 1
        self._clients.add(client)
        self._sweep.add(client)
        return True

    def _tell_crowded(self) -> None:
        """Say what to do about it, in case that it is no attack; not where it is, as that may be a principal."""
        now_s = stopwatch_s()
        if now_s - self._told_s < CROWDED_TOLD_S:
            return
        self._told_s = now_s
        log.warning(
            "one address has %d connections, and more of it are closed at once (proxy: connections_per_address_max); "
            "if it is a balancer or a proxy of yours, name it in trusted_proxies",
            self.bounds.connections_per_address_max,
        )

    def leave(self, client: ClientConnection) -> None:
        """The client's connection is closed."""
        self._clients.discard(client)
        self._sweep.discard(client)
        peer = client.peer
        if peer is not None:
            self._addresses[peer] -= 1
            if not self._addresses[peer]:
                del self._addresses[peer]

    def retire(self) -> None:
        """Close idle connections now and the others behind their responses."""
        self.draining = True
        for client in list(self._clients):
            client.retire()

    def abort(self) -> None:
        """Close every connection now."""
        for client in list(self._clients):
            client.abort()
        self.pool.close()
