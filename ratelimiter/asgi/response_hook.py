"""The response of an application, told to the request that is pending in its limiter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.engine.settlements import PendingRequest

    Message = Any  # as frameworks type it
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

SWITCHING = 101  # the status of a websocket's handshake that is accepted
FORBIDDEN = 403  # and of one that is not, by the servers
DRAINS_MAX = 100  # of responses that are made to the end though the client has left; per process
DRAIN_S = 60.0  # for such a response

_draining = 0  # responses now


class SettlingSend:
    """The `send` of an application, with *pending* told of the response before it leaves.

    Args:
        send: passes it on.
        pending: the request.

    Attributes:
        complete: the response has come to its end.
    """

    __slots__ = ("_observer", "_pending", "_send", "complete")

    def __init__(self, send: Send, pending: PendingRequest) -> None:
        self._send = send
        self._pending = pending
        self._observer: Callable[[bytes], None] | None = None
        self.complete = False

    def __call__(self, message: Message) -> Awaitable[None]:
        """Tell the request of *message*, and pass it on as it is."""
        kind = message["type"]
        if kind == "http.response.body":
            if self._observer is not None and message.get("body"):
                self._observer(bytes(message["body"]))
            self.complete = not message.get("more_body", False)
        elif kind in ("http.response.start", "websocket.http.response.start"):
            # They may be there to be read only once.
            message = {**message, "headers": list(message.get("headers", ()))}
            self._observer = self._pending.responded(message["status"], message["headers"])
        elif kind == "websocket.accept":
            message = {**message, "headers": list(message.get("headers", ()))}
            self._pending.responded(SWITCHING, message["headers"])
        elif kind == "websocket.close":  # of a handshake, if no response has begun
            self._pending.responded(FORBIDDEN, ())
        return self._send(message)

    def ended(self, *, failed: bool) -> None:
        """End the request; *failed*: the application raised."""
        self._pending.ended(self.complete, not self.complete and not failed)


class Drain:
    """The two ways of an application whose response is made to its end though the client has left.

    Its `receive` keeps the disconnect back until the response has ended or takes too long; its `send` throws away what
    cannot be sent. If too many are drained already, the application learns of the disconnect at once.

    Args:
        receive: of the application.
        send: of the application.
        pending: the request.
    """

    def __init__(self, receive: Receive, send: Send, pending: PendingRequest) -> None:
        self._receive = receive
        self._send = send
        self._pending = pending
        self._begun = False
        self._gone = False

    async def receive(self) -> Message:
        """Return the next message, a disconnect only when there is no more to wait for."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._gone and self._begin():
            try:
                await asyncio.sleep(DRAIN_S)  # cancelled by the application when its response is complete
            finally:
                self.end()
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        """Send *message*, or throw it away if the client has left."""
        try:
            await self._send(message)
        except OSError:  # what servers raise when the client has left (ASGI 2.4)
            if self._gone or not (self._begun or self._begin()):
                raise

    def _begin(self) -> bool:
        global _draining  # noqa: PLW0603  # bounds all requests of the process
        if self._begun:
            return True
        if _draining >= DRAINS_MAX or not self._pending.drains:
            return False
        self._begun = True
        _draining += 1
        return True

    def end(self) -> None:
        """Make room for another one."""
        global _draining  # noqa: PLW0603
        if self._begun:
            self._begun = False
            _draining -= 1
