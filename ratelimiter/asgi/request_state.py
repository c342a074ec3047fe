"""One request on its way through an application: what its limiters agreed on, and the headers its response leaves
with.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.core.decision import merge
from ratelimiter.core.identity import NOBODY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.identity import Identity
    from ratelimiter.core.policy import Hit

    Message = Any  # as frameworks type it
    Send = Callable[[Message], Awaitable[None]]
    Header = tuple[bytes, bytes]

SCOPE_KEY = "ratelimiter"  # where the ASGI scope holds the exchange, so that all limiters of a stack find one
NAME = itemgetter(0)  # of a header
STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class Manner(NamedTuple):
    """What all exchanges of one limiter have in common."""

    replaced: frozenset[bytes]  # names of the headers that the application may have set, too, and that are ours to say
    render: Callable[[Decision], list[Header]]  # writes the headers of a decision
    id_header: bytes | None  # carries the request's id; None when the dialect has none


class Exchange:
    """One request and its response, made by the outermost limiter of a stack.

    Args:
        manner: how its headers are written.
        request_id: quoted in error bodies, too; empty when the dialect has none.
        decision: of the outermost limiter.
        charged: what that one has charged, so that a limiter further in does not charge it again.
        identity: whom the request's credentials name, where the policy has them verified.
    """

    __slots__ = ("_manner", "charged", "decisions", "identity", "request_id", "started")

    def __init__(
        self,
        manner: Manner,
        request_id: str,
        decision: Decision,
        charged: Sequence[Hit],
        identity: Identity = NOBODY,
    ) -> None:
        self._manner = manner
        self.identity = identity
        self.request_id = request_id
        self.charged = charged
        self.decisions: Sequence[Decision] = (decision,)  # of each limiter, from the outermost inward
        self.started = False  # whether the response has begun

    @property
    def headers(self) -> list[Header]:
        """The headers that are ours to say, for all that was decided so far."""
        decisions = self.decisions
        _, render, id_header = self._manner
        headers = render(decisions[0] if len(decisions) == 1 else merge(decisions))
        if id_header is not None:
            headers.append((id_header, self.request_id.encode()))
        return headers

    def sender(self, send: Send) -> Send:
        """*send*, with our headers on the message that begins the response.

        A closure, not a method, because the scope holds the exchange and what servers call `send` holds the scope: kept
        here it would close a circle that only the garbage collector opens, at a third of the throughput. And no
        coroutine of its own: that would be one more per message, for an await that nothing needs.
        """
        replaced = self._manner[0]

        def send_with_headers(message: Message) -> Awaitable[None]:
            if self.started or message["type"] not in STARTS:
                return send(message)
            self.started = True
            headers = [*message.get("headers", ())]
            if not replaced.isdisjoint(map(NAME, headers)):
                headers = [header for header in headers if header[0] not in replaced]
            headers += self.headers
            return send({**message, "headers": headers})  # a copy: the application may send the same one again

        return send_with_headers
