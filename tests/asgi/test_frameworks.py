"""The middleware inside the frameworks that people use, and under a real server."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import fastapi
import litestar
import pytest
import uvicorn
import websockets
from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from ratelimiter import RateLimitMiddleware
from tests.asgi_client import get, http_scope, send_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def statuses(app: Any, target: str, times: int = 2) -> list[int]:
    return [(await get(app, target)).status for _ in range(times)]


def lazily_included() -> FastAPI:
    """A FastAPI application whose only route comes from a router within a router."""
    leaf, branch, app = APIRouter(), APIRouter(prefix="/v1"), FastAPI()

    @leaf.get("/items/{key}")
    async def item(key: str) -> dict[str, str]:
        return {"key": key}

    branch.include_router(leaf)
    app.include_router(branch)
    return app


class TestFastAPI:
    async def test_included_routers_are_limited(self) -> None:
        """Routes that FastAPI resolves lazily (0.137 and later) are limited like any other."""
        app = lazily_included()
        app.add_middleware(RateLimitMiddleware, limit="1/minute")

        assert [200, 429] == await statuses(app, "/v1/items/7")

    async def test_unknown_routes_are_limited(self) -> None:
        """A scan for routes spends its limit, too."""
        app = lazily_included()
        app.add_middleware(RateLimitMiddleware, limit="1/minute")

        assert [404, 429] == await statuses(app, "/nowhere")

    async def test_mounted_application_is_limited(self) -> None:
        """A sub-application is behind the limiter of the one it is mounted in."""
        app = FastAPI()
        app.mount("/sub", lazily_included())
        app.add_middleware(RateLimitMiddleware, limit="1/minute")

        assert [200, 429] == await statuses(app, "/sub/v1/items/7")

    async def test_refusal_passes_through_cors(self) -> None:
        """With CORSMiddleware outside of us a browser may read the 429 and its figures."""
        app = lazily_included()
        app.add_middleware(RateLimitMiddleware, limit="1/minute", expose_headers=True)
        app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"])
        answers = [await get(app, "/v1/items/7", {"Origin": "https://app.example"}) for _ in range(2)]

        assert [200, 429] == [answer.status for answer in answers]
        assert ["https://app.example"] * 2 == [answer.line("access-control-allow-origin") for answer in answers]
        assert all(
            "X-RateLimit-Remaining" in (answer.line("access-control-expose-headers") or "") for answer in answers
        )

    async def test_own_error_handler_is_left_to_answer(self) -> None:
        """An application that has said how it answers an unhandled error does so."""
        app = FastAPI()

        @app.get("/")
        async def broken() -> None:
            raise RuntimeError

        @app.exception_handler(Exception)
        async def handler(request: fastapi.Request, error: Exception) -> PlainTextResponse:
            return PlainTextResponse("our own", status_code=500)

        app.add_middleware(RateLimitMiddleware, limit="1/minute")

        assert b"our own" == (await get(app)).body


class TestStarlette:
    async def test_inside_a_mount(self) -> None:
        """A limiter around one mount limits that mount, with paths relative to it, and nothing else."""
        guarded = Mount(
            "/api", routes=[Route("/hello", hello)], middleware=[Middleware(RateLimitMiddleware, limit="1/minute")]
        )
        app = Starlette(routes=[guarded, Route("/free", hello)])

        assert [200, 429] == await statuses(app, "/api/hello")
        assert [200, 200] == await statuses(app, "/free")

    async def test_rules_inside_a_mount_are_relative_to_it(self) -> None:
        """The path of a rule is what follows the mount's prefix."""
        from tests.asgi.test_middleware import _path_policy

        limiter = Middleware(RateLimitMiddleware, config=_path_policy())
        app = Starlette(
            routes=[Mount("/api", routes=[Route("/v1/deep", hello), Route("/x", hello)], middleware=[limiter])]
        )

        assert [200, 429] == await statuses(app, "/api/v1/deep")
        assert [200, 200] == await statuses(app, "/api/x")

    async def test_unhandled_error_has_headers_whatever_the_stack(self) -> None:
        """Starlette answers unhandled errors outside of all middleware; the client still gets figures and the
        dialect.
        """

        async def broken(_: Request) -> None:
            raise RuntimeError

        app = Starlette(routes=[Route("/", broken)], middleware=[Middleware(RateLimitMiddleware, limit="5/minute")])
        answer = await get(app)

        assert (500, "4") == (answer.status, answer.line("x-ratelimit-remaining"))
        assert isinstance(answer.error, RuntimeError)

    async def test_stream_is_not_held_back(self) -> None:
        """The first chunk is with the client before the second is made."""
        sent: list[bytes] = []
        at_second: list[int] = []

        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            at_second.append(len(sent))
            yield b"two"

        async def stream(_: Request) -> StreamingResponse:
            return StreamingResponse(chunks())

        app = Starlette(routes=[Route("/", stream)], middleware=[Middleware(RateLimitMiddleware, limit="5/minute")])

        async def receive() -> dict[str, Any]:
            return await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: Any) -> None:
            if message.get("body"):
                sent.append(message["body"])

        await app(http_scope(), receive, send)

        assert ([1], [b"one", b"two"]) == (at_second, sent)

    async def test_lifespan_runs(self) -> None:
        """Start-up and shut-down of the application are its own affair, and the limiter needs neither."""
        seen: list[str] = []

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[dict[str, int]]:
            seen.append("up")
            yield {"answer": 42}
            seen.append("down")

        app = Starlette(lifespan=lifespan, middleware=[Middleware(RateLimitMiddleware, limit="5/minute")])
        incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        answer = await send_request(app, {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, incoming)

        assert (["up", "down"], None) == (seen, answer.error)
        assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == [m["type"] for m in answer.messages]


class TestLitestar:
    async def test_routes_are_limited(self) -> None:
        """Litestar mounts the same class."""

        @litestar.get("/")
        async def root() -> str:
            return "hello"

        app = litestar.Litestar([root], middleware=[DefineMiddleware(RateLimitMiddleware, limit="1/minute")])
        answers = [await get(app) for _ in range(2)]

        assert [200, 429] == [answer.status for answer in answers]
        assert "0" == answers[0].line("x-ratelimit-remaining")


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """*app* under uvicorn on a free port; its host and port."""
    config = uvicorn.Config(app, port=0, log_level="critical", proxy_headers=False, ws="websockets-sansio")
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    task = asyncio.create_task(server.serve(sockets=[socket]))
    while not server.started:  # noqa: ASYNC110  # uvicorn offers no event to wait for
        await asyncio.sleep(0.01)
    try:
        yield "{}:{}".format(*socket.getsockname())
    finally:
        server.should_exit = True
        await task


class TestUvicorn:
    async def test_websocket_client_sees_the_429(self) -> None:
        """Over a real server a refused handshake is the documented answer, with Retry-After."""

        async def echo(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text(await websocket.receive_text())
            await websocket.close()

        app = Starlette(
            routes=[WebSocketRoute("/", echo)], middleware=[Middleware(RateLimitMiddleware, limit="1/minute")]
        )
        async with served(app) as address:
            async with websockets.connect(f"ws://{address}/") as connection:
                await connection.send("hello")
                assert "hello" == await connection.recv()
                assert connection.response is not None
                assert "0" == connection.response.headers["x-ratelimit-remaining"]
            with pytest.raises(websockets.InvalidStatus) as refusal:
                await websockets.connect(f"ws://{address}/")

        response = refusal.value.response
        assert (429, True) == (response.status_code, 1 <= int(response.headers["retry-after"]) <= 60)
        assert ["per-minute"] == json.loads(response.body)["violated-policies"]

    async def test_a_thousand_at_once_admit_exactly_the_limit(self) -> None:
        """However many requests race, the limit is the limit."""
        app = Starlette(routes=[Route("/", hello)], middleware=[Middleware(RateLimitMiddleware, limit="100/hour")])
        async with served(app) as address:
            host, port = address.split(":")

            async def ask() -> bytes:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                line = await reader.readline()
                await reader.read()
                writer.close()
                return line.split()[1]

            lines = [line for _ in range(10) for line in await asyncio.gather(*(ask() for _ in range(100)))]

        assert (100, 900) == (lines.count(b"200"), lines.count(b"429"))
