"""The outermost hook of an application whose endpoints limit themselves: headers and settlement of their judgements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.asgi.request_state import NAME, SCOPE_KEY, STARTS, RequestState
from ratelimiter.asgi.response_hook import SWITCHING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.asgi.assembly import Assembly
    from ratelimiter.engine.settlements import PendingRequest

    Scope = Any  # as frameworks type it
    Message = Any
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

HOOK_KEY = "ratelimiter.hook"  # where the ASGI scope holds what is pending of its endpoint


class EndpointHook:
    """Middleware that tells what endpoints have charged: in headers to the client, in settlements to the store.

    Args:
        app: behind it.
        assembly: of the limiter that judges the endpoints.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[Any]], assembly: Assembly) -> None:
        self.app = app
        self._assembly = assembly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one connection scope."""
        if self._assembly.timed:
            self._assembly.begin()
        if scope["type"] not in ("http", "websocket") or HOOK_KEY in scope:
            return await self.app(scope, receive, send)
        pending: list[PendingRequest] = []
        scope[HOOK_KEY] = pending
        outer = scope.get(SCOPE_KEY)  # the limiter that made this state writes its headers

        def send_with_headers(message: Message) -> Awaitable[None]:
            kind = message["type"]
            if kind in STARTS:
                headers = list(message.get("headers", ()))
                for each in pending:
                    each.responded(message.get("status", SWITCHING), headers)
                state: RequestState | None = scope.get(SCOPE_KEY)
                if outer is None and state is not None and not state.started:
                    state.started = True
                    headers = [header for header in headers if NAME(header) not in state.reserved]
                    headers += state.headers
                message = {**message, "headers": headers}
            return send(message)

        try:
            return await self.app(scope, receive, send_with_headers)
        except Exception:
            for each in pending:
                each.responded(500, ())
            raise
        finally:
            for each in pending:
                each.ended()
