"""Limits as FastAPI dependencies: who is charged, what is answered, and what the OpenAPI document says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from jsonschema import validate
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.websockets import WebSocketDisconnect

from ratelimiter import ConfigError, RateLimitMiddleware
from ratelimiter.core.caller import Caller, identity_of
from ratelimiter.fastapi import RateLimits
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


def made(**settings: Any) -> RateLimits:
    return RateLimits(store=MemoryStore(clock=FakeClock()), **settings)


def installed(limits: RateLimits, *routes: Any, app: FastAPI | None = None) -> TestClient:
    app = FastAPI() if app is None else app
    limits.install(app)
    return TestClient(app)


def statuses(client: TestClient, path: str, times: int, **headers: str) -> list[int]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return [client.get(path, headers=sent).status_code for _ in range(times)]


def user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    return x_user


async def user_async(x_user: Annotated[str | None, Header()] = None) -> str | None:
    return x_user


def user_yielded(x_user: Annotated[str | None, Header()] = None) -> Iterator[str | None]:
    yield x_user


async def user_yielded_async(x_user: Annotated[str | None, Header()] = None) -> AsyncIterator[str | None]:
    yield x_user


class UserOf:
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __call__(self, x_user: Annotated[str | None, Header()] = None) -> str | None:
        return x_user and self.prefix + x_user


class TestWho:
    @pytest.mark.parametrize("by", [user, user_async, user_yielded, user_yielded_async, UserOf("u-")])
    def test_the_value_of_any_dependency_is_charged(self, by: Any) -> None:
        """Each user has a budget, and whoever has none is charged by address."""
        limits, app = made(), FastAPI()

        @app.get("/x", dependencies=[limits("2/minute", by=by)])
        def read() -> str:
            return "ok"

        client = installed(limits, app=app)

        assert [200, 200, 429] == statuses(client, "/x", 3, x_user="ann")
        assert [200, 200, 429] == statuses(client, "/x", 3, x_user="bob")
        assert [200, 200, 429] == statuses(client, "/x", 3)

    def test_a_caller_has_the_limit_of_its_plan(self) -> None:
        """Of a plan that is not named the first; unlimited is not limited, and the key stays when a plan changes."""
        limits, app = made(), FastAPI()
        plans = {"ann": "free", "bob": "pro", "eve": "staff", "dan": "unheard-of"}

        def who(x_user: Annotated[str, Header()]) -> Caller:
            return Caller(x_user, plans[x_user])

        @app.get("/x", dependencies=[limits({"free": "1/minute", "pro": "3/minute", "staff": "unlimited"}, by=who)])
        def read() -> None: ...

        client = installed(limits, app=app)

        assert [200, 429] == statuses(client, "/x", 2, x_user="ann")
        assert [200, 200, 200, 429] == statuses(client, "/x", 4, x_user="bob")
        assert [200] * 5 == statuses(client, "/x", 5, x_user="eve")
        assert [200, 429] == statuses(client, "/x", 2, x_user="dan")
        plans["ann"] = "pro"
        assert [200, 200, 429] == statuses(client, "/x", 3, x_user="ann")

    def test_overridden_dependencies_are_overridden_here_too(self) -> None:
        """As tests of applications do it."""
        limits, app = made(), FastAPI()

        @app.get("/x", dependencies=[limits("1/minute", by=user)])
        def read() -> None: ...

        client = installed(limits, app=app)
        app.dependency_overrides[user] = lambda: "always-me"

        assert [200, 429] == [client.get("/x", headers={"x-user": name}).status_code for name in ("a", "b")]

    def test_who_is_exempt_is_not_limited(self) -> None:
        """By the value of a dependency, too."""
        limits, app = made(), FastAPI()

        def internal(x_internal: Annotated[bool, Header()] = False) -> bool:
            return x_internal

        @app.get("/x", dependencies=[limits("1/minute", exempt=internal)])
        def read() -> None: ...

        client = installed(limits, app=app)

        assert [200] * 3 == statuses(client, "/x", 3, x_internal="true")
        assert [200, 429] == statuses(client, "/x", 2)

    @pytest.mark.parametrize("value", [b"ann", ["ann"], object(), True])
    def test_what_is_no_caller_is_the_applications_mistake(self, value: Any) -> None:
        """It is an error that says so, and never charged as something else."""
        with pytest.raises(TypeError, match="give the user's id"):
            identity_of(value)

    @pytest.mark.parametrize("principal", ["", "x" * 1025, "é" * 513, "x" * 1_000_000])
    def test_a_principal_is_bounded(self, principal: str) -> None:
        """In bytes, as it is everywhere."""
        with pytest.raises(ValueError, match="1 to 1024 bytes"):
            Caller(principal)


class TestBudgets:
    def test_each_endpoint_has_its_own(self) -> None:
        """Also where a router or the application brings the limit, and where templates only look alike."""
        limits = made()
        app = FastAPI(dependencies=[limits("2/minute")])
        router = APIRouter(prefix="/r", dependencies=[limits("1/minute")])

        @app.get("/a")
        def a() -> None: ...

        @app.get("/a/{id}")
        def b() -> None: ...

        @router.get("/c")
        def c() -> None: ...

        app.include_router(router)
        client = installed(limits, app=app)

        assert [200, 200, 429] == statuses(client, "/a", 3)
        assert [200, 200, 429] == [client.get(f"/a/{n}").status_code for n in range(3)]
        assert [200, 429] == statuses(client, "/r/c", 2)

    def test_several_share_one_by_name(self) -> None:
        """Whatever their path and method."""
        limits, app = made(), FastAPI()

        @app.get("/a", dependencies=[limits("2/minute", shared="both")])
        def a() -> None: ...

        @app.post("/b", dependencies=[limits("2/minute", shared="both")])
        def b() -> None: ...

        client = installed(limits, app=app)

        assert [200, 200, 429] == [
            client.get("/a").status_code,
            client.post("/b").status_code,
            client.get("/a").status_code,
        ]

    def test_several_limits_are_charged_all_or_none(self) -> None:
        """What the second refuses the first does not count (1)."""
        limits, app = made(), FastAPI()

        @app.get("/x", dependencies=[limits("5/hour", "2/minute")])
        def read() -> None: ...

        client = installed(limits, app=app)
        assert [200, 200, 429, 429] == statuses(client, "/x", 4)
        limits.limiter.store._clock.advance(60_000)  # type: ignore[attr-defined]

        assert [200, 200, 429] == statuses(client, "/x", 3)
        limits.limiter.store._clock.advance(60_000)  # type: ignore[attr-defined]
        assert [200, 429] == statuses(client, "/x", 2)

    def test_two_dependencies_are_charged_all_or_none(self) -> None:
        """A refusal of the second gives back what the first has charged."""
        limits, app = made(), FastAPI()

        @app.get("/x", dependencies=[limits("3/minute", shared="all"), limits("1/minute")])
        def x() -> None: ...

        @app.get("/y", dependencies=[limits("3/minute", shared="all")])
        def y() -> None: ...

        client = installed(limits, app=app)

        assert [200, 429, 429] == statuses(client, "/x", 3)
        assert [200, 200, 429] == statuses(client, "/y", 3)

    def test_a_cost_is_a_number_or_a_dependency(self) -> None:
        """What does not fit as a whole is refused as a whole."""
        limits, app = made(), FastAPI()

        def size(x_size: Annotated[int, Header()]) -> int:
            return x_size

        @app.get("/x", dependencies=[limits("10/minute", cost=size)])
        def x() -> None: ...

        @app.get("/y", dependencies=[limits("10/minute", cost=4)])
        def y() -> None: ...

        client = installed(limits, app=app)

        assert [200, 429, 200, 429] == [
            client.get("/x", headers={"x-size": n}).status_code for n in ("7", "4", "3", "1")
        ]
        assert [200, 200, 429] == statuses(client, "/y", 3)

    def test_only_some_responses_count(self) -> None:
        """Failed logins do, and others do not."""
        limits, app = made(), FastAPI()

        @app.get("/login", dependencies=[limits("2/minute", count=[401])])
        def login(ok: bool) -> Any:
            return PlainTextResponse("", 200 if ok else 401)

        client = installed(limits, app=app)
        got = [client.get("/login", params={"ok": ok}).status_code for ok in (True, True, True, False, False, True)]

        assert [200, 200, 200, 401, 401, 429] == got

    def test_slots_return_when_the_response_ends(self) -> None:
        """A stream holds its slot to its end, and background tasks hold it, too, as they are part of the response."""
        limits, app = made(), FastAPI()
        inner: list[int] = []

        @app.get("/x", dependencies=[limits("1 concurrent", by=user)])
        def x(tasks: BackgroundTasks) -> StreamingResponse:
            def body() -> Iterator[str]:
                inner.append(client.get("/x", headers={"x-user": "ann"}).status_code)
                yield "."

            return StreamingResponse(body() if not inner else iter(["."]))

        client = installed(limits, app=app)

        assert 200 == client.get("/x", headers={"x-user": "ann"}).status_code
        assert [429] == inner
        assert 200 == client.get("/x", headers={"x-user": "ann"}).status_code

    def test_a_rule_of_the_file_by_name(self, tmp_path: Path) -> None:
        """Its limit is the file's to say; a name that is not there is told when the application is built."""
        file = tmp_path / "policy.yaml"
        file.write_text("rules: [{name: exports, limit: 2/minute, match: {path: /never}}]\n")
        limits, app = made(config=file, reload=False), FastAPI()

        @app.get("/x", dependencies=[limits.rule("exports", by=user)])
        def x() -> None: ...

        client = installed(limits, app=app)

        assert [200, 200, 429] == statuses(client, "/x", 3)
        with pytest.raises(ConfigError, match="write exports"):
            limits.rule("export")

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ((), "there is none"),
            (("60/minuet",), "60/minuet"),
            (({"free": "unlimited"},), "no plan has a limit"),
        ],
    )
    def test_mistakes_are_told_when_the_application_is_built(self, given: Any, told: str) -> None:
        """Not by the first user."""
        with pytest.raises(ConfigError, match=told):
            made()(*given)


class TestWays:
    def test_as_an_annotation_and_within_depends(self) -> None:
        """The ways in which people write dependencies."""
        limits, app = made(), FastAPI()

        def a(_: None) -> None: ...

        a.__annotations__["_"] = Annotated[None, limits("1/minute")]
        app.get("/a")(a)

        @app.get("/b", dependencies=[Depends(limits("1/minute"))])
        def b() -> None: ...

        @app.get("/c")
        def c(_: None = limits("1/minute", by=user)) -> None: ...  # type: ignore[assignment]

        client = installed(limits, app=app)

        assert [[200, 429]] * 3 == [statuses(client, path, 2) for path in ("/a", "/b", "/c")]

    def test_websockets_are_refused_at_the_handshake(self) -> None:
        """With the answer where the server can carry it, which this one can."""
        limits, app = made(), FastAPI()

        @app.websocket("/ws", dependencies=[limits("1/minute")])
        async def ws(socket: WebSocket) -> None:
            await socket.accept()
            await socket.send_text("hello")
            await socket.close()

        client = installed(limits, app=app)
        with client.websocket_connect("/ws") as socket:
            assert "hello" == socket.receive_text()
        with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/ws"):
            pass

        assert 429 == getattr(refused.value, "status_code", 429)

    def test_a_decorator_for_plain_starlette(self) -> None:
        """With the same powers: who, cost and exemption are functions of the request."""
        limits = made()

        @limits.limit("2/minute", by=lambda request: request.headers.get("x-user"))
        async def one(request: Any) -> PlainTextResponse:
            return PlainTextResponse("ok")

        @limits.limit("1/minute")
        def two(request: Any) -> PlainTextResponse:
            return PlainTextResponse("ok")

        client = TestClient(Starlette(routes=[Route("/one", one), Route("/two", two)]))

        assert [200, 200, 429] == statuses(client, "/one", 3, x_user="ann")
        assert [200] == statuses(client, "/one", 1, x_user="bob")
        assert [200, 429] == statuses(client, "/two", 2)

    def test_without_anything_installed_refusals_are_whole(self) -> None:
        """Also the headers of responses that FastAPI makes; what needs more says what to write."""
        limits, app = made(), FastAPI()

        @app.get("/x", dependencies=[limits("1/minute")])
        def x() -> None: ...

        @app.get("/y", dependencies=[limits("1 concurrent")])
        def y() -> None: ...

        client = TestClient(app)
        first, second = client.get("/x"), client.get("/x")

        assert ("1", "0") == (first.headers["x-ratelimit-limit"], first.headers["x-ratelimit-remaining"])
        assert (429, "60", "0") == (
            second.status_code,
            second.headers["retry-after"],
            second.headers["x-ratelimit-remaining"],
        )
        with pytest.raises(RuntimeError, match=r"limits\.install"):
            client.get("/y")

    def test_the_lifespan_installs_it_too(self) -> None:
        """Once, with the headers on every kind of response, and the store closed in the end."""
        limits = made()
        app = FastAPI(lifespan=limits.lifespan)

        @app.get("/x", dependencies=[limits("2/minute")])
        def x() -> PlainTextResponse:
            return PlainTextResponse("ok")

        with TestClient(app) as client:
            answers = [client.get("/x") for _ in range(3)]
            documented = client.get("/openapi.json").json()

        assert [200, 200, 429] == [answer.status_code for answer in answers]
        assert ["1", "0", "0"] == [answer.headers["x-ratelimit-remaining"] for answer in answers]
        assert "429" in documented["paths"]["/x"]["get"]["responses"]

    def test_with_a_middleware_both_are_charged_or_none(self) -> None:
        """The headers speak of both, once, and what the endpoint refuses the middleware does not count."""
        store = MemoryStore(clock=FakeClock())
        limits, app = RateLimits(store=store), FastAPI()
        app.add_middleware(RateLimitMiddleware, limit="3/minute", store=store)

        @app.get("/x", dependencies=[limits("1/minute")])
        def x() -> None: ...

        @app.get("/y")
        def y() -> None: ...

        client = installed(limits, app=app)
        answers = [client.get("/x") for _ in range(4)]
        beside = [client.get("/y") for _ in range(3)]

        assert [200, 429, 429, 429] == [answer.status_code for answer in answers]
        assert ["1"] == answers[0].headers.get_list("x-ratelimit-limit")
        assert [200, 200, 429] == [answer.status_code for answer in beside]

    def test_a_mounted_application_has_budgets_of_its_own(self) -> None:
        """Although its endpoint has the same template as one of the other."""
        limits, app, sub = made(), FastAPI(), FastAPI()
        for each in (app, sub):

            @each.get("/x", dependencies=[limits("1/minute")])
            def x() -> None: ...

        app.mount("/sub", sub)
        client = installed(limits, app=app)

        assert [[200, 429], [200, 429]] == [statuses(client, path, 2) for path in ("/x", "/sub/x")]


class TestOpenAPI:
    @pytest.mark.parametrize("dialect", ["problem", "trace", "plain", "tracefinance-v1"])
    def test_what_is_documented_is_what_is_sent(self, dialect: str) -> None:
        """The example is the very body, the schema fits it, and the headers that are named are there."""
        limits, app = made(dialect=dialect, headers=["x-ratelimit", "draft-11"]), FastAPI()

        @app.get("/x", dependencies=[limits("1/minute")], name="x")
        def x() -> None: ...

        @app.get("/free")
        def free() -> None: ...

        client = installed(limits, app=app)
        paths = client.get("/openapi.json").json()["paths"]
        client.get("/x")
        sent = client.get("/x")
        documented = paths["/x"]["get"]["responses"][str(sent.status_code)]
        ((media, told),) = documented["content"].items()

        assert media == sent.headers["content-type"].partition(";")[0]
        if media.endswith("json"):
            body = sent.json()
            if "request_id" not in sent.text and "requestId" not in sent.text:
                assert told["example"] == body
            validate(body, told["schema"])
        else:
            assert told["example"] == sent.text
        assert {name.lower() for name in documented["headers"]} <= {name.lower() for name in sent.headers}
        assert "429" not in paths["/free"]["get"]["responses"]

    def test_credits_are_a_402(self) -> None:
        """As the dialect answers them."""
        limits, app = made(), FastAPI()

        @app.get("/x", dependencies=[limits("1 credits")])
        def x() -> None: ...

        client = installed(limits, app=app)
        responses = client.get("/openapi.json").json()["paths"]["/x"]["get"]["responses"]
        got = statuses(client, "/x", 2)

        assert [200, 402] == got
        assert "402" in responses


class TestSharedStore:
    def test_counts_are_exact_on_redis_in_one_call_a_request(self) -> None:
        """Two processes' worth of applications share one budget a user and a tier, and a request is one script call."""
        with RedisServer() as server:
            settings: Any = {"store": server.url, "decision_timeout": "5s"}
            clients = []
            for _ in range(2):
                limits, app = RateLimits(**settings), FastAPI()

                def who(x_user: Annotated[str, Header()]) -> Caller:
                    return Caller(x_user, "pro" if x_user == "bob" else "free")

                @app.get("/x", dependencies=[limits({"free": "3/hour", "pro": "5/hour"}, "100/day", by=who)])
                def x() -> None: ...

                clients.append(installed(limits, app=app))
            before = calls(server)
            got = {
                user: [clients[n % 2].get("/x", headers={"x-user": user}).status_code for n in range(8)]
                for user in ("ann", "bob")
            }
            asked = calls(server) - before

        assert [200] * 3 + [429] * 5 == got["ann"]
        assert [200] * 5 + [429] * 3 == got["bob"]
        assert asked <= 16


def calls(server: RedisServer) -> int:
    """How many scripts the server has run."""
    with server.client() as client:
        stats: Any = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))
