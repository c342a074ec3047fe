"""The response of an application, told to the request that is pending in its limiter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.engine.settlements import PendingRequest

    Message = Any  # as frameworks type it
    Send = Callable[[Message], Awaitable[None]]

SWITCHING = 101  # the status of a websocket's handshake that is accepted
FORBIDDEN = 403  # and of one that is not, by the servers


def settling(send: Send, pending: PendingRequest) -> Send:
    """Return *send*, with *pending* told of the message that begins the response, before it leaves."""

    def send_and_settle(message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            # They may be there to be read only once.
            message = {**message, "headers": list(message.get("headers", ()))}
            pending.responded(message["status"], message["headers"])
        elif kind == "websocket.accept":
            message = {**message, "headers": list(message.get("headers", ()))}
            pending.responded(SWITCHING, message["headers"])
        elif kind == "websocket.close":  # of a handshake, if no response has begun
            pending.responded(FORBIDDEN, ())
        return send(message)

    return send_and_settle
