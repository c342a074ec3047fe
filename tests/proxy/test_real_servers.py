"""Goal: servers and clients that nobody here wrote get along through the proxy. Method: each as its users start it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import h11
import httpx
import pytest
import uvicorn
import websockets
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from ratelimiter.proxy.pool import Target
from tests.proxy.servers import nginx, node, output, standard_library
from tests.proxy.wire import Sidecar, sidecar, until
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request
    from starlette.websockets import WebSocket

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

LARGE = 30 * 2**20


def client(proxy: Sidecar) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{proxy.port}", timeout=10)


async def test_the_server_of_the_standard_library(tmp_path: Path) -> None:
    """HTTP/1.0, a connection for each request, bodies that end with it: to clients it looks like any other."""
    (tmp_path / "large").write_bytes(b"x" * LARGE)
    async with (
        standard_library(tmp_path) as server,
        sidecar(server.target, limit="3/hour") as proxy,
        client(proxy) as http,
    ):
        assert LARGE == len((await http.get("/large")).content)
        assert (200, b"") == ((answer := await http.head("/large")).status_code, answer.content)
        assert 404 == (await http.get("/none")).status_code
        assert 429 == (await http.get("/large")).status_code


async def test_curl(tmp_path: Path) -> None:
    """Downloads, uploads with and without being asked to, and sees the 429."""
    async with application() as target, sidecar(target, limit="3/hour") as proxy:
        url = f"http://127.0.0.1:{proxy.port}/sum"
        file = tmp_path / "large"
        file.write_bytes(b"y" * LARGE)
        for flags in (
            ["-T", str(file)],
            ["-T", "-"],
            ["-H", "Expect:", "--data-binary", f"@{file}"],
            ["-T", str(file)],
        ):
            given = file.read_bytes() if flags[1] == "-" else b""
            out = await output("curl", "-s", "-S", "-w", "%{http_code}", "-X", "POST", *flags, url, given=given)
            expected = f'{{"size":{LARGE}}}200' if len(proxy.exchanges) < 4 else "429"
            assert out.endswith(expected)


async def _sum(request: Request) -> JSONResponse:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size})


async def _stream(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(LARGE // 2**16):
            yield b"z" * 2**16

    return StreamingResponse(pieces())


async def _seen(request: Request) -> JSONResponse:
    return JSONResponse({"client": request.client and request.client.host, "url": str(request.url)})


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)


@asynccontextmanager
async def application() -> AsyncIterator[Target]:
    """A Starlette application under uvicorn, on this event loop."""
    app: Any = Starlette(
        routes=[
            Route("/sum", _sum, methods=["POST", "PUT"]),
            Route("/stream", _stream),
            Route("/seen", _seen),
            WebSocketRoute("/echo", _echo),
        ]
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", ws="websockets-sansio"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "uvicorn serves")
    try:
        yield Target("127.0.0.1", port)
    finally:
        server.should_exit = True
        await serving


async def test_uvicorn_and_httpx() -> None:
    """Streams both ways, keeps connections, and learns who asked."""
    async with application() as target, sidecar(target) as proxy, client(proxy) as http:
        digest = hashlib.sha256()
        async with http.stream("GET", "/stream") as answer:
            async for piece in answer.aiter_bytes():
                digest.update(piece)
        assert hashlib.sha256(b"z" * LARGE).digest() == digest.digest()
        assert {"size": LARGE} == (await http.post("/sum", content=b"a" * LARGE)).json()

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"b" * 10_000

        assert {"size": 1_000_000} == (await http.post("/sum", content=pieces())).json()
        seen = (await http.get("/seen?a=b", headers={"Host": "api.example"})).json()
        assert {"client": "127.0.0.1", "url": "http://api.example/seen?a=b"} == seen
        assert 1 == len(proxy.service)
        answers = await asyncio.gather(*[http.get("/seen") for _ in range(50)])
        assert {200} == {answer.status_code for answer in answers}


async def test_websockets() -> None:
    """A handshake is one request; whoever is over the limit sees the 429."""
    async with application() as target, sidecar(target, limit="1/hour") as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/echo"
        async with websockets.connect(url, max_size=2**24) as websocket:
            for message in ("hello", "x" * 2_000_000):
                await websocket.send(message)
                assert message == await websocket.recv()
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(url)

        assert 429 == caught.value.response.status_code


async def test_nginx(tmp_path: Path) -> None:
    """A directory, ranges, conditional requests, and the 429."""
    (tmp_path / "index.html").write_text("hello")
    (tmp_path / "folder").mkdir()
    async with nginx(tmp_path) as server, sidecar(server.target, limit="6/hour") as proxy, client(proxy) as http:
        first = await http.get("/")
        assert (200, "hello") == (first.status_code, first.text)
        assert 304 == (await http.get("/", headers={"If-None-Match": first.headers["etag"]})).status_code
        part = await http.get("/index.html", headers={"Range": "bytes=1-2"})
        assert (206, "el") == (part.status_code, part.text)
        assert "Index of /folder/" in (await http.get("/folder/")).text
        assert 405 == (await http.post("/", content=b"x" * 100_000)).status_code
        assert 200 == (await http.get("/")).status_code
        assert 429 == (await http.get("/")).status_code


async def test_node() -> None:
    """Chunked answers, and a WebSocket of `ws` that speaks first; both see the 429."""
    async with node() as server, sidecar(server.target, limit="4/hour") as proxy:
        async with client(proxy) as http:
            for size in (0, 3, 1_000_000):
                assert f"size {size}" == (await http.post("/", content=b"x" * size)).text
        url = f"ws://127.0.0.1:{proxy.port}/"
        async with websockets.connect(url, max_size=2**24) as websocket:
            assert "hi" == await websocket.recv()
            for message in ("hello", bytes(2_000_000)):
                await websocket.send(message)
                assert message == await websocket.recv()
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(url)
        async with client(proxy) as http:
            refused = await http.post("/", content=b"x" * 1_000_000)

        assert [429, 429] == [caught.value.response.status_code, refused.status_code]


async def test_wrk(tmp_path: Path) -> None:
    """Counts as many refusals as there were."""
    (tmp_path / "index.html").write_text("hello")
    async with nginx(tmp_path) as server, sidecar(server.target, limit="100/hour") as proxy:
        told = await output("wrk", "-t1", "-c8", "-d1", f"http://127.0.0.1:{proxy.port}/")
    counted = [re.search(pattern, told) for pattern in (r"(\d+) requests in", r"Non-2xx or 3xx responses: (\d+)")]
    requests, refused = (int(found[1]) for found in counted if found)

    assert 100 == requests - refused
    assert "Socket errors" not in told


async def test_h11(tmp_path: Path) -> None:
    """Reads answers and a refusal over one connection, and sends a body in chunks."""
    (tmp_path / "index.html").write_text("hello")
    async with nginx(tmp_path) as server, sidecar(server.target, limit="2/hour") as proxy, proxy.client() as wire:
        connection = h11.Connection(h11.CLIENT)

        async def ask(method: str, *body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
            coding = [("Transfer-Encoding", "chunked")] if body else []
            head = h11.Request(method=method, target="/", headers=[("Host", "api.example"), *coding])
            for event in (head, *(h11.Data(data=part) for part in body), h11.EndOfMessage()):
                wire.send(connection.send(event) or b"")
            answer: Any = None
            heard: Any
            content = b""
            while not isinstance(heard := connection.next_event(), h11.EndOfMessage):
                if heard is h11.NEED_DATA:
                    connection.receive_data(await wire.reader.read(2**16))
                elif isinstance(heard, h11.Data):
                    content += heard.data
                else:
                    answer = heard
            connection.start_next_cycle()
            return answer.status_code, dict(answer.headers), content

        status, headers, content = await ask("GET")
        assert (200, b"1", b"hello") == (status, headers[b"x-ratelimit-remaining"], content)
        assert 405 == (await ask("POST", b"x" * 1000, b"y"))[0]
        status, headers, content = await ask("GET")
        assert (429, 429) == (status, json.loads(content)["status"])
        assert 0 < int(headers[b"retry-after"]) <= 3600
