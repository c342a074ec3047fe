"""The lifespan of a limited application: mistakes stop the server as it starts, and the end closes the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from ratelimiter.asgi.assembly import Assembly
    from ratelimiter.asgi.middleware import RateLimitMiddleware
    from ratelimiter.errors import ConfigError

    Message = Any  # as frameworks type it
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

NEEDS_ASYNCIO = "ratelimiter runs on asyncio, and this server on another event loop; start it with asyncio or uvloop"
FRAMES_MAX = 8  # looked at for the one that builds middleware


def built_at_startup(frame: FrameType | None) -> bool:
    """Return whether *frame* builds middleware with the first scope, as Starlette and FastAPI do.

    Servers take an exception at that moment for a missing lifespan, and go on to serve: the first user would be told of
    the mistake. So it is kept, and told as `lifespan.startup.failed`.
    """
    for _ in range(FRAMES_MAX):
        if frame is None:
            return False
        if frame.f_code.co_name == "build_middleware_stack":
            return True
        frame = frame.f_back
    return False


class _Faulty:
    """Stands in for the assembly of a middleware whose settings cannot be used: every request is that error."""

    timed = True
    limiter: Any = None

    def __init__(self, fault: ConfigError) -> None:
        self._fault = fault

    def begin(self) -> None:
        """Raise the fault."""
        raise self._fault


def faulty(fault: ConfigError) -> Assembly:
    """Return what stands in for an assembly, and raises *fault* with every request."""
    stand_in: Any = _Faulty(fault)
    return stand_in  # type: ignore[no-any-return]


async def serve_lifespan(middleware: RateLimitMiddleware, fault: str, scope: Any, receive: Receive, send: Send) -> Any:
    """Serve the lifespan of the application behind *middleware*.

    Args:
        middleware: to be closed in the end.
        fault: why it cannot serve; empty if it can.
        scope: of the lifespan.
        receive: of the lifespan.
        send: of the lifespan.
    """
    fault = fault or _loop_fault()
    if fault:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": fault})
        return None
    middleware.begin()

    async def send_behind(message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown"):
            await middleware.close()
        await send(message)

    return await middleware.app(scope, receive, send_behind)


def _loop_fault() -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return NEEDS_ASYNCIO
    return ""
