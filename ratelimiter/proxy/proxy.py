"""The state that all client connections of a proxy share, and the bounds on their number."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from ratelimiter.clock import stopwatch_s
from ratelimiter.proxy.drain import Drains
from ratelimiter.proxy.forwarded import X_FORWARDED
from ratelimiter.proxy.head import PLAIN_POLICY
from ratelimiter.proxy.header_policy import HeaderPolicy
from ratelimiter.proxy.pool import Pool, Target
from ratelimiter.proxy.response_writer import field_lines, status_line
from ratelimiter.proxy.timeouts import Sweep

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from ratelimiter.core.reply import Reply
    from ratelimiter.proxy.interfaces import Client, ErrorWriter, ExchangeObserver, Judge
    from ratelimiter.proxy.settings import ProxySettings

    Header = tuple[bytes, bytes]

log = logging.getLogger(__name__)

CROWDED_TOLD_S = 60.0  # between two log lines about it
HEADS_MAX = 256  # of replies, about 1 kB each: the judge may send the same one again and again


def _nobody(_: str | None) -> bool:
    return False


class Proxy:
    """One upstream, its clients' connections, and the judge between them.

    Args:
        target: where the upstream is.
        judge: asked once for every request.
        errors: words the answers that the proxy gives by itself.
        settings: bounds on times, sizes and counts.
        loop: the event loop.
        observer: is told every exchange.
        trusts: returns True if a peer, None on a unix socket, may speak for others and be many clients at once.
        families: fields that tell the upstream the client's address: `x-forwarded`, `forwarded` or both.
        via: what this proxy calls itself in Via; empty for no such field.

    Attributes:
        draining: True if every response is its connection's last; set it to let clients go.
        turned_away: connections that were closed at once because there were too many.
    """

    def __init__(
        self,
        target: Target,
        judge: Judge,
        errors: ErrorWriter,
        settings: ProxySettings,
        loop: asyncio.AbstractEventLoop,
        *,
        observer: ExchangeObserver | None = None,
        trusts: Callable[[str | None], bool] = _nobody,
        families: Sequence[str] = (X_FORWARDED,),
        via: bytes = b"",
    ) -> None:
        self.judge = judge
        self.errors = errors
        self.settings = settings
        self.loop = loop
        self.observer = observer
        self.trusts = trusts
        self.families = families
        self.via = via
        self.pool = Pool(target, settings, loop)
        self.drains = Drains(settings, loop)
        self.draining = False
        self.turned_away = 0
        self._header_policy = PLAIN_POLICY
        self._clients: set[Client] = set()
        self._told_s = float("-inf")  # when it was last logged that an address has too many
        self._heads: dict[tuple[int, int], tuple[bytes, Reply, Sequence[Header]]] = {}
        self._addresses: Counter[str] = Counter()
        self._sweep = Sweep(loop, settings.tick_s)

    def __len__(self) -> int:
        """Client connections open now."""
        return len(self._clients)

    def header_policy(self) -> HeaderPolicy:
        """Return which fields are passed on, as the judge reserves names now."""
        policy, judge = self._header_policy, self.judge
        if (
            policy.reserved_request is not judge.reserved_request
            or policy.reserved_response is not judge.reserved_response
        ):
            policy = self._header_policy = HeaderPolicy(judge.reserved_request, judge.reserved_response, judge.figures)
        return policy

    def head_of(self, reply: Reply, headers: Sequence[Header]) -> bytes:
        """Return the head of a reply of our own, up to the part that differs between connections."""
        key = (id(reply), id(headers))
        kept = self._heads.get(key)
        if kept is not None:
            return kept[0]
        head = status_line(reply.status) + field_lines(reply.headers) + field_lines(headers)
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[key] = (head, reply, headers)  # which keeps their identities from being given to others
        return head

    def enter(self, client: Client) -> bool:
        """Take *client* in, if there is room for it."""
        peer = client.peer
        settings = self.settings
        crowded = (
            peer is not None and self._addresses[peer] >= settings.connections_per_address_max and not self.trusts(peer)
        )
        if crowded:
            self._tell_crowded()
        if crowded or len(self._clients) >= settings.connections_max:
            self.turned_away += 1
            return False
        if peer is not None:
            self._addresses[peer] += 1
        self._clients.add(client)
        self._sweep.add(client)
        return True

    def _tell_crowded(self) -> None:
        """Log what to do about it, in case it is no attack; without the address, which may be a principal."""
        now_s = stopwatch_s()
        if now_s - self._told_s < CROWDED_TOLD_S:
            return
        self._told_s = now_s
        log.warning(
            "one address has %d connections, and more of it are closed at once (proxy: connections_per_address_max); "
            "if it is a balancer or a proxy of yours, name it in trusted_proxies",
            self.settings.connections_per_address_max,
        )

    def leave(self, client: Client) -> None:
        """Forget a connection that is closed."""
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
        self.drains.close()
        self.pool.close()
