"""The answer in an application's place: a response, or the close of a websocket that can carry none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.decision import BLOCKED, CREDIT_EXHAUSTED, MALFORMED, OVER_CAPACITY, OVER_LIMIT, STORE_ERROR
from ratelimiter.core.identity import UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.core.reply import Reply

    Scope = Any  # as frameworks type it
    Message = Any
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

DENIAL_RESPONSE = "websocket.http.response"  # extension of the ASGI specification
POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1
TRY_AGAIN_LATER = 1013  # IANA registry of WebSocket close codes

# By the reason of a decision, what the close of a websocket says; the others are requirements, whose names say it.
_CLOSE_REASONS = {
    OVER_LIMIT: "rate limited",
    OVER_CAPACITY: "the cost exceeds the limit",
    CREDIT_EXHAUSTED: "credits are exhausted",
    MALFORMED: "malformed request",
    STORE_ERROR: "the rate limiter is unavailable",
    BLOCKED: "blocked",
}
_UNAVAILABLE = frozenset({STORE_ERROR, UNAVAILABLE})


async def refuse(scope: Scope, receive: Receive, send: Send, reply: Reply, reason: str) -> None:
    """Send *reply* in the application's place.

    Args:
        scope: of the connection, http or websocket.
        receive: of the connection; nothing of a websocket was received yet.
        send: of the connection.
        reply: the answer.
        reason: `Decision.reason` of the refusal, told where a websocket is closed without a response.
    """
    prefix = "http.response"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if DENIAL_RESPONSE not in (scope.get("extensions") or {}):
            # Before the handshake is accepted, servers make of this a plain 403.
            code = TRY_AGAIN_LATER if reason in _UNAVAILABLE else POLICY_VIOLATION
            told = _CLOSE_REASONS.get(reason) or reason.replace("_", " ")
            await send({"type": "websocket.close", "code": code, "reason": told})
            return
        prefix = DENIAL_RESPONSE
    body = b"" if scope.get("method") == "HEAD" else reply.body
    await send({"type": f"{prefix}.start", "status": reply.status, "headers": reply.headers})
    await send({"type": f"{prefix}.body", "body": body})
