"""What an application sends, told to who follows its request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.engine.settlements import Follower

    Message = Any  # as frameworks type it
    Send = Callable[[Message], Awaitable[None]]

SWITCHING = 101  # what becomes of a handshake that is accepted
FORBIDDEN = 403  # and of one that is not, by the servers


def overheard(send: Send, follower: Follower) -> Send:
    """*send*, with *follower* told of the message that begins the response, before it leaves."""

    def send_overheard(message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            # They may be there to be read only once.
            message = {**message, "headers": list(message.get("headers", ()))}
            follower.responded(message["status"], message["headers"])
        elif kind == "websocket.accept":
            message = {**message, "headers": list(message.get("headers", ()))}
            follower.responded(SWITCHING, message["headers"])
        elif kind == "websocket.close":  # of a handshake, if no response has begun
            follower.responded(FORBIDDEN, ())
        return send(message)

    return send_overheard
