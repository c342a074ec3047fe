"""A Starlette or FastAPI application's own errors, in the dialect of its limiter."""

from __future__ import annotations

import re
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from ratelimiter.asgi.refusal import DENIAL_RESPONSE, POLICY_VIOLATION
from ratelimiter.asgi.request_state import SCOPE_KEY
from ratelimiter.dialects import loader, request_id
from ratelimiter.dialects.dialect import Dialect
from ratelimiter.dialects.error import DialectError
from ratelimiter.dialects.words import GIVABLE, Finding

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request

    from ratelimiter.asgi.request_state import RequestState
    from ratelimiter.core.reply import Reply

    Header = tuple[bytes, bytes]

OF_THE_BODY = frozenset({b"content-length", b"content-type", b"transfer-encoding"})  # of another than the one we send


def install_error_handlers(app: Starlette, dialect: str | os.PathLike[str] | Dialect = "problem") -> None:
    """Let every error of *app* leave in *dialect*: `HTTPException`, `DialectError`, validation and unhandled errors.

    With the middleware they carry the same request id as the rest of the request; without it, an id of their own.

    Args:
        app: a Starlette or FastAPI application that has not served a request yet.
        dialect: the one that the middleware was given: a name, the path of a dialect file, or a `Dialect`.

    Raises:
        ConfigError: there is no such dialect, or its file cannot be used.
        RuntimeError: *app* has served a request, so what is installed now would have no effect.
    """
    if app.middleware_stack is not None:
        msg = "the application has served a request; install its error handlers before it starts"
        raise RuntimeError(msg)
    handlers = ErrorHandlers(dialect if isinstance(dialect, Dialect) else loader.load(dialect))
    # Starlette's type has one kind of handler for requests and another for websockets; these serve both.
    installed: dict[type[Exception], Any] = {
        HTTPException: handlers.http_error,
        DialectError: handlers.dialect_error,
        Exception: handlers.unhandled_error,
    }
    # Where FastAPI is not imported, nothing of it can be raised.
    if "fastapi" in sys.modules and handlers.dialect.validates:
        from fastapi.exceptions import RequestValidationError  # noqa: PLC0415  # FastAPI is not required

        installed[RequestValidationError] = handlers.validation_error
    for kind, handler in installed.items():
        app.add_exception_handler(kind, handler)


class ErrorHandlers:
    """Exception handlers, one per kind of error, as Starlette calls them.

    Args:
        dialect: in which they answer.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    async def http_error(self, connection: HTTPConnection, error: Exception) -> Response | None:
        """Answer an `HTTPException` of Starlette or FastAPI, with the headers it has."""
        assert isinstance(error, HTTPException)  # noqa: S101  # it is registered for nothing else
        own = _encoded(error.headers)
        if not 400 <= error.status_code <= 599:
            return _response(error.status_code, own, b"")  # 204, 304 and the like are no error and have no body
        facts = {**_wait(own), **_facts(error)}
        named, ids = self._named(connection)
        reply = self.dialect.reply_for_status(error.status_code, request_id=named, **facts)
        return await _sent(connection, reply, [*own, *ids])

    async def dialect_error(self, connection: HTTPConnection, error: Exception) -> Response | None:
        """Answer with what the application asked for."""
        assert isinstance(error, DialectError)  # noqa: S101  # it is registered for nothing else
        named, ids = self._named(connection)
        own = _encoded(error.headers)
        reply = self.dialect.reply(error.answer, request_id=named, **error.facts)
        return await _sent(connection, reply, [*own, *ids])

    async def validation_error(self, connection: HTTPConnection, error: Exception) -> Response | None:
        """Answer a request that FastAPI found invalid."""
        named, ids = self._named(connection)
        reply = self.dialect.validation_reply(findings(error.errors()), named)  # type: ignore[attr-defined]
        assert reply is not None  # noqa: S101  # it is registered for dialects that answer it
        return await _sent(connection, reply, ids)

    async def unhandled_error(self, request: Request, error: Exception) -> Response:  # noqa: ARG002  # nothing leaks
        """Answer anything else with the 500 of the dialect, and no word about the error.

        Starlette sends it outside of every middleware, so it takes the limiter's headers along.
        """
        named, ids = self._named(request)
        state = _state(request)
        # Without a decision the error is the limiter's own, and it has no headers to tell.
        limits = state.headers if state is not None and state.decisions else []
        if not limits and not ids and self.dialect.request_ids is not None:
            ids = [(self.dialect.request_ids.header, named.encode())]
        reply = self.dialect.reply_for_status(500, request_id=named)
        return _response(reply.status, _merged(reply.headers, [*limits, *ids]), reply.body)

    def _named(self, connection: HTTPConnection) -> tuple[str, list[Header]]:
        """Return the request's id, and the header that tells it where no middleware does."""
        ids = self.dialect.request_ids
        state = _state(connection)
        if ids is None:
            return "", []
        if state is not None and state.request_id:
            return state.request_id, []
        chosen = request_id.choose(ids, connection.scope.get("headers", ()))
        return chosen, [(ids.header, chosen.encode())]


def findings(errors: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return what pydantic found, without any value of the request.

    Args:
        errors: as `RequestValidationError.errors()` returns them.
    """
    return [_finding(error) for error in errors] or [Finding("body", "body", "is not valid")]


def _finding(error: Mapping[str, Any]) -> Finding:
    location, *steps = error.get("loc") or ("body",)
    kind = _kind(str(error["type"]), str(location))
    if kind == "malformed":
        return Finding(str(location), str(location), "is not valid JSON", kind)
    return Finding(str(location), _field(steps) or str(location), _issue(error), kind)


def _field(steps: Sequence[str | int]) -> str:
    field = ""
    for step in steps:
        field += f"[{step}]" if isinstance(step, int) else f".{step}" if field else step
    return field


_KINDS = (  # the first whose pattern the type of a pydantic error begins with
    (re.compile("json_invalid"), "malformed"),
    (re.compile("missing"), "missing"),
    (re.compile("uuid"), "uuid"),
    (re.compile("enum|literal_error"), "enum"),
    (re.compile("date|time_|timezone"), "date"),
    (re.compile(r"\w+_(?:type|parsing)$"), "type"),
)


def _kind(type_: str, location: str) -> str:
    kind = next((kind for pattern, kind in _KINDS if pattern.match(type_)), "invalid")
    return "header" if kind == "missing" and location == "header" else kind


_SHOULD = re.compile(r"^[A-Z]\w* should ")
_CHOICE = re.compile(r"'((?:[^'\\]|\\.)*)'")


def _issue(error: Mapping[str, Any]) -> str:
    """Return the message of a pydantic error as a predicate of its field."""
    type_, message = str(error["type"]), str(error["msg"])
    if type_.startswith("missing"):
        return "is required"
    if type_ == "extra_forbidden":
        return "is not permitted"
    if type_ in ("enum", "literal_error"):
        choices = _CHOICE.findall(str(error.get("ctx", {}).get("expected", "")))
        if choices:
            return f"must be one of: {', '.join(choices)}"
    if _SHOULD.match(message):
        return _SHOULD.sub("must ", message)
    if type_ in ("value_error", "assertion_error"):
        message = message.partition(", ")[2] or message  # "Value error, " and then what the validator said
    return message if message[:1].islower() else f"is invalid: {message}"


def _facts(error: HTTPException) -> dict[str, Any]:
    """Return what the detail of an `HTTPException` says of the answer."""
    detail: Any = error.detail
    if isinstance(detail, str):
        return {"message": detail} if detail and detail != _phrase(error.status_code) else {}
    if isinstance(detail, dict):
        facts = {word: value for word, value in detail.items() if word == "code" or word in GIVABLE}
        facts |= {word: str(facts[word]) for word in ("code", "message") if word in facts}
        return facts or {"details": detail}
    return {} if detail is None else {"details": detail}


def _phrase(status: int) -> str:
    """Return what Starlette puts into the detail where the application gave none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _wait(headers: Sequence[Header]) -> dict[str, int]:
    """Return the Retry-After that the error brings, for the body."""
    value = next((value for name, value in headers if name == b"retry-after"), b"")
    return {"retry_after_s": int(value)} if value.isdigit() and len(value) < 10 else {}


def _encoded(headers: Mapping[str, str] | None) -> list[Header]:
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return [(name, value) for name, value in encoded if name not in OF_THE_BODY]


def _state(connection: HTTPConnection) -> RequestState | None:
    state: RequestState | None = connection.scope.get(SCOPE_KEY)
    return state


def _merged(headers: Sequence[Header], winning: Sequence[Header]) -> list[Header]:
    """Return *headers* but for those that *winning* has, too, then *winning*."""
    names = {name for name, _ in winning}
    return [*(header for header in headers if header[0] not in names), *winning]


async def _sent(connection: HTTPConnection, reply: Reply, headers: Sequence[Header]) -> Response | None:
    """Return the response to send; None when *connection* is a websocket that can carry none, and was closed."""
    if isinstance(connection, WebSocket):
        deniable = DENIAL_RESPONSE in (connection.scope.get("extensions") or {})
        if not deniable or connection.application_state is not WebSocketState.CONNECTING:
            if connection.application_state is not WebSocketState.DISCONNECTED:
                await connection.close(POLICY_VIOLATION)
            return None
    return _response(reply.status, _merged(reply.headers, headers), reply.body)


def _response(status: int, headers: Sequence[Header], body: bytes) -> Response:
    response = Response(body, status)
    response.raw_headers = list(headers)
    return response
