"""The beginning of a request's body, read before the application does and then given to it all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Message = Any  # as frameworks type it
    Receive = Callable[[], Awaitable[Message]]


async def peek(receive: Receive, wanted: int) -> tuple[bytes, Receive]:
    """Return the first *wanted* bytes of the body, and what the application receives from then on.

    The application gets what was read as one message, then whatever comes after it, a disconnect included. No more is
    held than *wanted* and the last message that came.

    Args:
        receive: of an http scope, from which nothing was received yet.
        wanted: bytes, at least 1.
    """
    held = bytearray()
    more = True
    ending: Message | None = None
    while more and len(held) < wanted:
        message = await receive()
        if message["type"] != "http.request":  # the client has gone
            ending = message
            break
        held += message.get("body", b"")
        more = message.get("more_body", False)
    body = bytes(held)
    held.clear()
    again: list[Message] = [] if ending is None else [ending]
    again.append({"type": "http.request", "body": body, "more_body": more})

    async def receive_again() -> Message:
        return again.pop() if again else await receive()

    return body, receive_again


class BodyReader:
    """Reads the beginning of a request's body when a rule asks for it.

    Attributes:
        receive: of an http scope, from which nothing was received yet; to be set first, as a constructor would cost
            each request twice as much. Once the request is judged, the application receives from it.
    """

    __slots__ = ("receive",)

    receive: Receive

    async def __call__(self, wanted: int) -> bytes:
        """Return the first *wanted* bytes of the body, or all of it if it is shorter."""
        body, self.receive = await peek(self.receive, wanted)
        return body
