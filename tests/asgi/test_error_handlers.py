from __future__ import annotations

import datetime  # noqa: TC003  # pydantic reads it
import json
import re
import uuid
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import fastapi
import pytest
from pydantic import BaseModel, Field, field_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from ratelimiter.asgi.error_handlers import install_error_handlers
from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.dialects import loader
from ratelimiter.dialects.error import DialectError
from ratelimiter.errors import ConfigError
from ratelimiter.stores.base import Store

if TYPE_CHECKING:
    from starlette.requests import Request

SECRET = "postgres://admin:hunter2@db"  # noqa: S105  # what must not leave
UUID = "7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36"


def client_of(error: Exception, dialect: str, **middleware: Any) -> TestClient:
    """A client of an application whose one endpoint raises *error*."""

    async def endpoint(request: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", endpoint)])
    install_error_handlers(app, dialect)
    if middleware:
        app.add_middleware(RateLimitMiddleware, dialect=dialect, **middleware)
    return TestClient(app, raise_server_exceptions=False)


def test_http_exception_leaves_in_the_dialect() -> None:
    """A bare 404 is the documented one."""
    response = client_of(HTTPException(404), "intrace").get("/")

    assert 404 == response.status_code
    assert {"code": "not_found", "message": "The resource does not exist.", "details": []} == response.json()["error"]


def test_http_exception_of_fastapi_does_so_too() -> None:
    """FastAPI's own class is no exception."""
    response = client_of(fastapi.HTTPException(404, "No such lookup."), "intrace").get("/")

    assert "No such lookup." == response.json()["error"]["message"]


def test_errors_of_the_router_leave_in_the_dialect() -> None:
    """An unknown path and a wrong method are the application's errors, too; Allow stays."""
    client = client_of(HTTPException(404), "tracefinance")
    wrong = client.post("/")

    assert "RESOURCE_NOT_FOUND" == client.get("/nowhere").json()["code"]
    assert ("METHOD_NOT_ALLOWED", "GET, HEAD") == (
        wrong.json()["code"],
        ", ".join(sorted(wrong.headers["allow"].split(", "))),
    )


@pytest.mark.parametrize(
    ("detail", "error"),
    [
        ("Gone.", {"code": "gone", "message": "Gone.", "details": []}),
        (
            {"code": "past_retention", "message": "Too old."},
            {"code": "past_retention", "message": "Too old.", "details": []},
        ),
        ({"details": [{"field": "id"}]}, {"code": "gone", "message": "Gone.", "details": [{"field": "id"}]}),
        ([{"field": "id"}], {"code": "gone", "message": "Gone.", "details": [{"field": "id"}]}),
        ({"since": 2020}, {"code": "gone", "message": "Gone.", "details": {"since": 2020}}),
        (7, {"code": "gone", "message": "Gone.", "details": 7}),
    ],
)
def test_detail_of_an_http_exception_is_told(detail: Any, error: dict[str, Any]) -> None:
    """A text is the message; a mapping gives code, message and details; anything else is the details."""
    assert error == client_of(fastapi.HTTPException(410, detail), "intrace").get("/").json()["error"]


def test_headers_of_an_http_exception_are_kept() -> None:
    """What the application says wins over what we would say, but for the body's own headers."""
    headers = {"WWW-Authenticate": "Bearer", "Cache-Control": "private", "Content-Length": "3", "Content-Type": "a/b"}
    response = client_of(HTTPException(429, headers=headers), "trace").get("/")

    assert ("Bearer", "private") == (response.headers["www-authenticate"], response.headers["cache-control"])
    assert "application/json" == response.headers["content-type"]
    assert str(len(response.content)) == response.headers["content-length"]


def test_retry_after_of_an_http_exception_is_in_the_body_as_well() -> None:
    """An application's own 429 is the documented one, once."""
    response = client_of(HTTPException(429, headers={"Retry-After": "30"}), "trace").get("/")

    assert loader.load("trace").reply("operational_rate_limit_exceeded", retry_after_s=30).body == response.content
    assert ["30"] == response.headers.get_list("retry-after")


@pytest.mark.parametrize("status", [204, 304, 307])
def test_what_is_no_error_has_no_body(status: int) -> None:
    """A status below 400 says nothing in any dialect."""
    response = client_of(HTTPException(status, headers={"Location": "/x"}), "intrace").get("/", follow_redirects=False)

    assert (status, b"", "/x") == (response.status_code, response.content, response.headers["location"])


def test_head_has_the_headers_of_get() -> None:
    """Content-length says what a GET would bring."""
    client = client_of(DialectError("credit_exhausted", requested=50, shortfall=12), "trace")

    assert client.get("/").headers["content-length"] == client.head("/").headers["content-length"]


def test_documented_answer_can_be_raised() -> None:
    """`DialectError` gives any answer that the dialect documents, byte for byte."""
    response = client_of(
        DialectError("credit_exhausted", headers={"X-Balance": "38"}, requested=50, shortfall=12), "trace"
    ).get("/")

    assert (402, "38") == (response.status_code, response.headers["x-balance"])
    assert (
        '{"error": "credit_exhausted", "message": "Insufficient credits to complete this request.", '
        '"requested": 50, "shortfall": 12}'
    ) == response.text


def test_answer_that_does_not_exist_is_an_unhandled_error() -> None:
    """A slip of the programmer leaks nothing; the log has the rest."""
    response = client_of(DialectError("credit_exausted"), "trace").get("/")

    assert (500, '{"error": "Internal server error"}') == (response.status_code, response.text)


@pytest.mark.parametrize("name", loader.names())
def test_unhandled_error_tells_nothing(name: str) -> None:
    """The 500 is the documented one, without internals, in header or body."""
    response = client_of(RuntimeError(SECRET), name).get("/")
    said = response.text + str(response.headers)

    assert 500 == response.status_code
    assert dict(loader.load(name).reply_for_status(500).headers)[b"content-type"].decode() in said
    assert not re.search("hunter2|RuntimeError|Traceback|postgres", said)


def test_unhandled_error_is_still_raised() -> None:
    """The server's log has it."""
    client = client_of(RuntimeError(SECRET), "intrace")
    client_that_raises = TestClient(client.app)

    with pytest.raises(RuntimeError, match="hunter2"):
        client_that_raises.get("/")


@pytest.mark.parametrize("error", [RuntimeError(SECRET), HTTPException(404), DialectError("not_found")])
def test_errors_carry_the_headers_and_the_id_of_the_request_once(error: Exception) -> None:
    """Behind the middleware an error is like any other response, even one that is sent outside of it."""
    response = client_of(error, "intrace", limit="60/minute").get("/", headers={"X-Request-Id": "mine-1"})

    assert ["mine-1"] == response.headers.get_list("x-request-id")
    assert "mine-1" == response.json()["request_id"]
    assert ["60"] == response.headers.get_list("x-ratelimit-limit")
    assert ["59"] == response.headers.get_list("x-ratelimit-remaining")


@pytest.mark.parametrize("error", [RuntimeError(SECRET), HTTPException(404), DialectError("not_found")])
def test_without_the_middleware_an_error_has_an_id_of_its_own(error: Exception) -> None:
    """Handlers alone do what the API documents: body and header agree."""
    client = client_of(error, "intrace")
    response = client.get("/")

    assert re.fullmatch("req_[0-9A-Z]{15}", response.json()["request_id"])
    assert [response.json()["request_id"]] == response.headers.get_list("x-request-id")
    assert "mine-1" == client.get("/", headers={"X-Request-Id": "mine-1"}).json()["request_id"]


def test_an_error_of_the_limiter_itself_has_its_id_too() -> None:
    """Where no decision fell there are no numbers to tell, and still an id to quote."""

    class BrokenStore(Store):
        async def charge(self, hits: object) -> NoReturn:
            raise RuntimeError(SECRET)

    client = client_of(HTTPException(404), "intrace", limit="60/minute", store=BrokenStore())
    response = client.get("/", headers={"X-Request-Id": "mine-1"})

    assert (500, "mine-1") == (response.status_code, response.json()["request_id"])
    assert ["mine-1"] == response.headers.get_list("x-request-id")


def test_an_id_that_is_malformed_is_not_taken_over() -> None:
    """Where a UUID is documented, only a UUID will do."""
    client = client_of(HTTPException(404), "tracefinance")

    assert UUID == client.get("/", headers={"X-Request-Id": UUID}).headers["x-request-id"]
    assert 4 == uuid.UUID(client.get("/", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"]).version


class Kind(StrEnum):
    EMAIL = "email"
    PHONE = "phone"


class Identifier(BaseModel):
    type: Kind
    value: Annotated[str, Field(min_length=3)] = "abc"


class Lookup(BaseModel):
    model_config = {"extra": "forbid"}

    identifiers: list[Identifier]
    customer_id: str
    depth: Literal["shallow", "deep"] = "shallow"
    id: uuid.UUID | None = None
    since: datetime.date | None = None
    limit: Annotated[int, Field(gt=0)] = 1
    even: int = 0

    @field_validator("even")
    @classmethod
    def must_be_even(cls, value: int) -> int:
        if value % 2:
            msg = "must be even"
            raise ValueError(msg)
        return value


def validating(dialect: str) -> TestClient:
    """A client of a FastAPI application that validates."""
    app = fastapi.FastAPI()
    install_error_handlers(app, dialect)

    @app.post("/lookup")
    async def lookup(
        body: Lookup, page: int = 1, x_tenant_id: Annotated[str, fastapi.Header()] = "t"
    ) -> dict[str, str]:
        return {"tenant": x_tenant_id}

    @app.get("/tenant")
    async def tenant(x_tenant_id: Annotated[str, fastapi.Header()]) -> str:
        return x_tenant_id

    return TestClient(app, raise_server_exceptions=False)


GOOD = {"identifiers": [{"type": "email"}], "customer_id": "c"}


@pytest.mark.parametrize(
    ("change", "code", "details"),
    [
        (
            {"identifiers": [{"type": "fax"}]},
            "field_invalid",
            [{"field": "identifiers[0].type", "issue": "Must be one of: email, phone"}],
        ),
        ({"depth": "deeper"}, "field_invalid", [{"field": "depth", "issue": "Must be one of: shallow, deep"}]),
        ({"limit": 0}, "field_invalid", [{"field": "limit", "issue": "Must be greater than 0"}]),
        ({"even": 1}, "field_invalid", [{"field": "even", "issue": "Must be even"}]),
        ({"extra": SECRET}, "field_invalid", [{"field": "extra", "issue": "Is not permitted"}]),
        (
            {"identifiers": [{"type": "email", "value": "x"}]},
            "field_invalid",
            [{"field": "identifiers[0].value", "issue": "Must have at least 3 characters"}],
        ),
        ({"identifiers": [{}]}, "field_required", [{"field": "identifiers[0].type", "issue": "Is required"}]),
    ],
)
def test_validation_of_fastapi_in_intrace(change: dict[str, Any], code: str, details: list[Any]) -> None:
    """400 with field and issue in the documented form, and no value of the request."""
    response = validating("intrace").post("/lookup", json={**GOOD, **change})

    assert (400, code) == (response.status_code, response.json()["error"]["code"])
    assert details == response.json()["error"]["details"]
    assert "hunter2" not in response.text


@pytest.mark.parametrize("name", ["intrace", "tracefinance", "tracefinance-v1", "sentinel", "problem", "plain"])
def test_a_broken_body_is_told_as_such(name: str) -> None:
    """What is no JSON is no field's fault."""
    response = validating(name).post("/lookup", content=b'{"a":', headers={"content-type": "application/json"})

    assert (422 if name in ("problem", "plain") else 400) == response.status_code
    assert "not valid JSON" in response.text


def test_broken_json_in_intrace_is_request_malformed() -> None:
    """The documented code."""
    response = validating("intrace").post("/lookup", content=b"{", headers={"content-type": "application/json"})

    assert "request_malformed" == response.json()["error"]["code"]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"id": "x"}, "INVALID_UUID", "id"),
        ({"since": "yesterday"}, "INVALID_DATE", "since"),
        ({"depth": "deeper"}, "INVALID_ENUM", "depth"),
        ({"limit": "many"}, "INVALID_TYPE", "limit"),
        ({"limit": -1}, "INVALID_DATA", "limit"),
        ({"identifiers": [{}]}, "REQUIRED", "identifiers[0].type"),
    ],
)
def test_validation_of_fastapi_in_tracefinance(change: dict[str, Any], code: str, field: str) -> None:
    """Each kind of finding has the documented code, and details name the field."""
    response = validating("tracefinance").post("/lookup", json={**GOOD, **change})

    assert (400, code, {"field": field}) == (response.status_code, response.json()["code"], response.json()["details"])


def test_missing_header_in_tracefinance() -> None:
    """A header that is required has a code of its own."""
    assert "MISSING_REQUIRED_HEADER" == validating("tracefinance").get("/tenant").json()["code"]


def test_validation_of_fastapi_in_tracefinance_v1() -> None:
    """Findings are nested, each with where it is."""
    response = validating("tracefinance-v1").post("/lookup?page=x", json={"identifiers": []})
    errors = response.json()["details"]["errors"]

    assert 400 == response.status_code
    assert {
        "code": "REQUIRED",
        "message": "Parameter 'customer_id' not found in request",
        "field": "body:customer_id",
        "params": {},
    } in errors
    assert {"query:page", "body:customer_id"} == {error["field"] for error in errors}


def test_validation_of_fastapi_in_sentinel() -> None:
    """The documented example, from a real request."""
    response = validating("sentinel").post("/lookup", json={"identifiers": []})

    assert '{"error": "Bad Request", "message": "customer_id is required", "status": 400}' == response.text


def test_validation_in_trace_stays_fastapis_own() -> None:
    """422 as FastAPI writes it, unchanged."""
    response = validating("trace").post("/lookup", json={"identifiers": []})

    assert 422 == response.status_code
    assert "missing" == response.json()["detail"][0]["type"]


def test_a_mistake_in_a_response_is_an_unhandled_error() -> None:
    """What FastAPI finds wrong with our own answer is not the client's fault."""
    app = fastapi.FastAPI()
    install_error_handlers(app, "intrace")

    @app.get("/")
    async def endpoint() -> int:
        return "hunter2"  # type: ignore[return-value]

    response = TestClient(app, raise_server_exceptions=False).get("/")

    assert (500, "internal_error") == (response.status_code, response.json()["error"]["code"])
    assert "hunter2" not in response.text


def test_errors_of_a_websocket_deny_it() -> None:
    """Before the handshake an error is a response, where the server can send one."""

    async def endpoint(websocket: WebSocket) -> None:
        raise HTTPException(403)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    install_error_handlers(app, "intrace")

    with pytest.raises(WebSocketDenialResponse) as denied, TestClient(app).websocket_connect("/"):
        pass

    assert 403 == denied.value.status_code
    assert "insufficient_scope" == json.loads(denied.value.content)["error"]["code"]


def test_errors_of_an_open_websocket_close_it() -> None:
    """After the handshake there is no response to give."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        raise HTTPException(403)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    install_error_handlers(app, "intrace")

    with TestClient(app).websocket_connect("/") as websocket, pytest.raises(WebSocketDisconnect) as closed:
        websocket.receive_text()

    assert 1008 == closed.value.code


def test_handlers_that_would_have_no_effect_are_refused() -> None:
    """Starlette reads its handlers once: later ones would be ignored in silence."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    TestClient(app).get("/")

    with pytest.raises(RuntimeError, match="install its error handlers before it starts"):
        install_error_handlers(app, "intrace")


def test_unknown_dialect_is_a_configuration_error() -> None:
    """Found when it is installed, not when it is needed."""
    with pytest.raises(ConfigError, match="there is no dialect"):
        install_error_handlers(Starlette(), "intrase")
