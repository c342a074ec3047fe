"""The request that a limiter reads from an ASGI scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ratelimiter.core.receipt import new
from ratelimiter.core.request import Request

if TYPE_CHECKING:
    Scope = Any  # as frameworks type it


def request_of(scope: Scope) -> Request:
    """Return what a limiter looks at of the request of *scope*, http or websocket."""
    client = scope.get("client")
    path = scope["path"]
    return new(
        Request,
        (
            scope.get("method", "GET"),  # a websocket's handshake is a GET (RFC 6455 section 4.1)
            scope.get("raw_path") or quote(path).encode(),
            scope.get("headers", ()),
            client[0] if client else None,
            scope.get("root_path", ""),
            path,
            b"" if scope["type"] == "websocket" else None,  # its handshake has none
        ),
    )


def handles_errors(scope: Scope) -> bool:
    """Return whether the application has its own answer to an unhandled error, as Starlette's and FastAPI's can."""
    app = scope.get("app")
    handlers = getattr(app, "exception_handlers", None) or {}
    return bool(getattr(app, "debug", False)) or 500 in handlers or Exception in handlers
