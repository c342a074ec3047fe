"""One request on its way through an application: what its limiters agreed on, and the headers its response leaves
with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.decision import merge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.policy import Hit

    Message = Any  # as frameworks type it
    Send = Callable[[Message], Awaitable[None]]
    Header = tuple[bytes, bytes]

SCOPE_KEY = "ratelimiter"  # where the ASGI scope holds the exchange, so that all limiters of a stack find one
STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class Exchange:
    """One request and its response, made by the outermost limiter of a stack.

    Args:
        replaced: names of the headers that the application may have set, too, and that are ours to say.
        render: writes the headers of a decision.
        id_header: the header that carries the request's id; None when the dialect has none.
        request_id: quoted in error bodies, too; empty when the dialect has none.
    """

    __slots__ = ("_id_header", "_render", "_replaced", "charged", "decisions", "request_id", "started")

    def __init__(
        self,
        replaced: frozenset[bytes],
        render: Callable[[Decision], list[Header]],
        id_header: bytes | None,
        request_id: str,
    ) -> None:
        self._replaced = replaced
        self._render = render
        self._id_header = id_header
        self.request_id = request_id
        self.charged: Sequence[Hit] = ()  # so that a limiter further in does not charge them again
        self.decisions: Sequence[Decision] = ()  # of each limiter, from the outermost inward
        self.started = False  # whether the response has begun

    @property
    def headers(self) -> list[Header]:
        """The headers that are ours to say, for all that was decided so far."""
        decisions = self.decisions
        headers = self._render(decisions[0] if len(decisions) == 1 else merge(decisions)) if decisions else []
        if self._id_header is not None:
            headers.append((self._id_header, self.request_id.encode()))
        return headers

    def sender(self, send: Send) -> Send:
        """*send*, with our headers on the message that begins the response.

        A closure, not a method, because the scope holds the exchange and what servers call `send` holds the scope: kept
        here it would close a circle that only the garbage collector opens, at a third of the throughput. And no
        coroutine of its own: that would be one more per message, for an await that nothing needs.
        """

        def send_with_headers(message: Message) -> Awaitable[None]:
            if self.started or message["type"] not in STARTS:
                return send(message)
            self.started = True
            replaced = self._replaced
            headers = [header for header in message.get("headers", ()) if header[0] not in replaced]
            headers += self.headers
            return send({**message, "headers": headers})

        return send_with_headers
